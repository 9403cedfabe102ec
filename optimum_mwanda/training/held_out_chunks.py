"""Held-out text of every language, for the evaluations of a `Trainer`."""

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from datasets import Dataset, IterableDataset

from ..configuration import MWandaConfig
from ..data.by_language import split_by_language
from ..data.columns import Columns
from ..data.running_text import make_chunks
from ..evaluation.settings import EvaluationSettings
from ..modeling.positions import resolve_sequence_length
from ..values import check_number, strings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def held_out_chunks(
    dataset: Any,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | str | None" = None,
    *,
    languages: str | Sequence[str] | None = None,
    tokens_per_language: int = EvaluationSettings.tokens_per_language,
    sequence_length: int | None = None,
    bos: str = MWandaConfig.bos,
    language_column: str = MWandaConfig.language_column,
    text_column: str = MWandaConfig.text_column,
) -> dict[str, Dataset]:
    """Makes the `eval_dataset` of a `Trainer`, which then logs the loss of every language as `eval_<language>_loss`.

    The losses are those of chunks as `mix_languages` makes them, in nats per token. For figures to report use
    `evaluate_languages`, which counts every token once and knows bits per byte and standard errors.

    Args:
        dataset: As for `mix_languages`.
        model: The causal language model that is trained.
        tokenizer: As for `mix_languages`.
        languages: Languages to evaluate; None for all. A stream with a language column needs them.
        tokens_per_language: Most tokens of each language, from its first rows; at least one chunk is taken.
        sequence_length: Tokens per chunk, as for `mix_languages`.
        bos: As in `MWandaConfig`.
        language_column: Column that names the language of a row.
        text_column: Column with the text or the conversation; not needed if there are `input_ids`.

    Returns:
        Language to its chunks.

    Raises:
        TypeError: If the dataset cannot be read.
        ValueError: If a setting is not allowed, a column or a language is missing, a language has no text, or texts or
            ids do not fit the model.
    """
    wanted = "a whole number of at least 1"
    check_number("tokens_per_language", tokens_per_language, lambda n: n >= 1 and n == int(n), wanted)
    columns = Columns(language_column, text_column)
    parts = split_by_language(dataset, columns, None if languages is None else strings("languages", languages))
    streams = {  # so that no more is read than is needed
        language: part if isinstance(part, IterableDataset) else part.to_iterable_dataset()
        for language, part in parts.items()
    }
    count = max(tokens_per_language // resolve_sequence_length(sequence_length, model), 1)
    chunks = make_chunks(streams, model, tokenizer, sequence_length, bos, columns)
    rows = {language: list(islice(part, count)) for language, part in chunks.items()}
    if silent := [language for language, found in rows.items() if not found]:
        raise ValueError(f"There is no text in: {', '.join(map(repr, silent))}. Leave these languages out.")
    return {language: Dataset.from_list(found) for language, found in rows.items()}
