"""From a dataset to the windows on which a model is evaluated, per language."""

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from ..data.encoding import RowEncoder
from ..data.rows import feed
from ..data.tokenised import IGNORED_LABEL
from ..modeling.positions import resolve_sequence_length
from .held_out import Batch, HeldOut, HeldOutPairs, HeldOutText
from .settings import EvaluationSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Reading(NamedTuple):
    """What a model is evaluated on.

    Attributes:
        held_out: The rows, which know how long the text of a window is.
        batches: Language to its windows, languages in sorted order.
        sequence_length: Most tokens per window.
    """

    held_out: HeldOut
    batches: dict[str, list[Batch]]
    sequence_length: int

    @property
    def digests(self) -> dict[str, str]:
        """Language to SHA-256 of everything that the model reads in it, whatever the size of the batches."""
        return {language: _digest(parts) for language, parts in self.batches.items()}


def read_held_out(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | str | None",
    dataset: Any,
    settings: EvaluationSettings,
) -> Reading:
    """Reads a dataset as far as `evaluate_languages` needs it; raises the same errors."""
    length, tokens = resolve_sequence_length(settings.sequence_length, model), settings.tokens_per_language
    if length < 2 or tokens < 2 or settings.batch_size < 1:
        raise ValueError(
            f"sequence_length={length} and tokens_per_language={tokens} must be at least 2, because the first token of "
            f"a window is not predicted, and batch_size={settings.batch_size} must be at least 1."
        )
    columns = {"text_column": settings.text_column}
    held_out: HeldOut
    if model.config.is_encoder_decoder:
        columns["target_column"] = settings.target_column
        encoder = RowEncoder(tokenizer, model, **columns)
        held_out = HeldOutPairs(encoder, length, tokens, settings.target_column)
    else:
        held_out = HeldOutText(RowEncoder(tokenizer, model, **columns, bos=settings.bos), length, tokens)
    feed(
        dataset,
        held_out,
        language_column=settings.language_column,
        languages=settings.languages,
        seed=settings.seed,
        pool=None,
        **columns,
    )
    held_out.encoder.check_padding()
    batches = {language: list(held_out.batches(language, settings.batch_size)) for language in held_out.languages}
    silent = [name for name, parts in batches.items() if all((part.targets == IGNORED_LABEL).all() for part in parts)]
    if silent or not batches:
        raise ValueError(f"There is no text to evaluate{' in ' + ', '.join(map(repr, silent)) if silent else ''}.")
    return Reading(held_out, batches, length)


def _digest(batches: Iterable[Batch]) -> str:
    windows = {}
    for batch in batches:
        for number, *rows in zip(batch.numbers, *batch.inputs.values(), strict=True):
            windows[number] = [row.tolist() for row in rows]
    return hashlib.sha256(json.dumps([windows[number] for number in sorted(windows)]).encode()).hexdigest()
