"""Writing a pruned model with all that belongs to it, and reading its evaluation back."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DataError, ModelError, errors_as

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..evaluation.report import PerplexityComparison

EVALUATION_NAME = "evaluation.json"


def add_storage_options(parser: argparse.ArgumentParser) -> None:
    """Adds the flags about the files that are written."""
    parser.add_argument(
        "--compressed",
        action="store_true",
        help="Store the non-zeros only; loading needs optimum-mwanda then (default: an ordinary checkpoint)",
    )
    parser.add_argument(
        "--base-model", metavar="ID", help="Repository of the dense model, for the card (default: MODEL, if it is one)"
    )


def write_checkpoint(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | None",
    folder: Path,
    args: argparse.Namespace,
    report: "PerplexityComparison | None" = None,
) -> None:
    """Writes weights, tokenizer, settings, evaluation and card into an empty folder.

    Raises:
        ModelError: If the model cannot be saved.
    """
    from ..checkpoint.card import save_card
    from ..checkpoint.compressed import save_pretrained_compressed
    from ..configuration import MWandaConfig

    with errors_as(ModelError, ValueError, TypeError, OSError):
        if args.compressed:
            save_pretrained_compressed(model, folder)
        else:
            model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        MWandaConfig.from_dict(model.config.mwanda_config["settings"]).save_pretrained(folder)
        if report is not None:
            (folder / EVALUATION_NAME).write_text(to_json(report.to_dict()), encoding="utf-8")
        save_card(model, folder, report=report, base_model=args.base_model, compressed=args.compressed)


def read_report(path: Path) -> "PerplexityComparison":
    """Reads what `prune --eval-dataset` or `evaluate --dense` wrote.

    Raises:
        DataError: If it is no comparison of a dense and a pruned model.
    """
    from ..evaluation.report import PerplexityComparison

    with errors_as(DataError, OSError):
        text = path.read_text(encoding="utf-8")
    try:
        return PerplexityComparison.from_dict(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} holds no comparison of a dense and a pruned model ({error!r}): write one with `optimum-cli mwanda "
            "evaluate MODEL --dataset ... --dense DENSE_MODEL --output FILE`."
        ) from error


def refresh_card(folder: Path) -> None:
    """Updates the card of a checkpoint whose storage has changed; a folder that has no card or no record gets none."""
    from huggingface_hub import metadata_load

    from ..checkpoint.card import CARD_NAME, save_card
    from ..checkpoint.files import is_compressed
    from ..checkpoint.verification import sparsity_record

    card, evaluation = folder / CARD_NAME, folder / EVALUATION_NAME
    if card.is_file() and sparsity_record(folder) is not None:
        base = (metadata_load(card) or {}).get("base_model")
        save_card(
            folder,
            folder,
            report=read_report(evaluation) if evaluation.is_file() else None,
            base_model=base if isinstance(base, str) else None,
            compressed=is_compressed(folder),
        )


def summary(record: dict[str, Any]) -> str:
    """One line on what was pruned."""
    settings = record["settings"]
    return (
        f"{record['achieved_sparsity']:.2%} of the weights in {len(record['blocks']['names'])} blocks are zero "
        f"({settings['criterion']}, {record['pattern']}, {settings['allocation']} allocation)."
    )


def facts(record: dict[str, Any]) -> dict[str, Any]:
    """The parts of the record that the JSON output repeats."""
    return {key: record[key] for key in ("model", "target_sparsity", "achieved_sparsity", "languages", "blocks")}


def to_json(values: Any) -> str:
    """Indented JSON with its last line break."""
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
