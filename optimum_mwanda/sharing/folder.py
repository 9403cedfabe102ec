"""Writing a pruned model with everything that belongs to it."""

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..configuration import MWandaConfig
from ..evaluation.harness.comparison import HarnessComparison
from ..evaluation.report import PerplexityComparison
from ..evaluation.tables import to_json
from ..record.schema import RECORD_KEY
from ..storage.compressed import save_pretrained_compressed
from ..storage.outputs import write_text
from ..storage.read_back import save_checked
from .card_content import PrunedModelCard
from .model_card import write_card
from .names import EVALUATION_NAME, HARNESS_NAME


def save_folder(
    model: PreTrainedModel,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    report: PerplexityComparison | None = None,
    harness: HarnessComparison | None = None,
    card: PrunedModelCard | None = None,
    compressed: bool = False,
    max_shard_size: int | str | None = None,
) -> None:
    """Writes weights, tokenizer, settings, evaluations and card into an empty folder.

    Args:
        model: The pruned model.
        folder: Folder to write to; created if it does not exist.
        tokenizer: Saved with the model if given.
        report: Becomes `evaluation.json`.
        harness: Becomes `harness.json`.
        card: Content of the card. None: write no card yet.
        compressed: Whether to store the zeros compressed.
        max_shard_size: Most bytes per weight file. None: as for `save_checked`.

    Raises:
        ValueError: If what was written is not the model in memory.
    """
    if compressed:
        save_pretrained_compressed(model, folder, max_shard_size=max_shard_size)
    else:
        save_checked(model, folder, max_shard_size=max_shard_size)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    MWandaConfig.from_dict(getattr(model.config, RECORD_KEY)["settings"]).save_pretrained(folder)
    write_evaluations(folder, report, harness)
    if card is not None:
        write_card(card, folder)


def write_evaluations(
    folder: Path, report: PerplexityComparison | None = None, harness: HarnessComparison | None = None
) -> None:
    """Writes the evaluations that are given, where `card` and `compress` find them again."""
    for name, evaluation in ((EVALUATION_NAME, report), (HARNESS_NAME, harness)):
        if evaluation is not None:
            write_text(folder / name, to_json(evaluation.to_dict()))
