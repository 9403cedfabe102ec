"""The rows of a language become chunks of one length to train on, a few rows at a time."""

import threading
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, Features, List, Value

from ..modeling.architecture import is_masked
from ..modeling.positions import resolve_sequence_length
from ..utils import abridged
from .by_language import first_rows
from .columns import Columns
from .cutting import Cutter
from .encoding import RowEncoder
from .rows import Row, select_needed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROWS_AT_A_TIME = 1000
"""Most rows that are joined; chunks as long as few rows need fewer."""

# Streams are read ahead in threads, and a tokenizer serves only one at a time.
_TOKENIZER = threading.Lock()


def make_chunks(
    parts: Mapping[str, Any],
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | str | None",
    sequence_length: int | None,
    bos: str,
    columns: Columns,
) -> dict[str, Any]:
    """Turns the rows of each language into chunks to train a causal language model on.

    Args:
        parts: As `split_by_language` gives them.
        model: The model.
        tokenizer: Its tokenizer, its name or path, or None for the model's own.
        sequence_length: Tokens per chunk; None as in `resolve_sequence_length`.
        bos: As in `MWandaConfig`.
        columns: Their language and text columns.

    Returns:
        Language to a dataset of the same kind with `input_ids`, `labels` and the language.

    Raises:
        TypeError: If texts or ids have the wrong type.
        ValueError: If the model is no causal language model, a column is missing, a language has no text, or texts, ids
            or the length do not fit the model.
    """
    if model.config.is_encoder_decoder or is_masked(model.config):
        raise ValueError(
            f"{type(model).__name__} does not continue running text: leave model out, so that rows are mixed as they "
            "are, and let the data collator make its inputs."
        )
    length = resolve_sequence_length(sequence_length, model)
    encoder = RowEncoder(tokenizer, model, columns.text, bos=bos)
    tokens = List(Value("int64"))
    features = Features({"input_ids": tokens, "labels": tokens, columns.language: Value("string")})
    parts = {language: select_needed(part, columns) for language, part in parts.items()}
    chunks = {}
    for language, first in first_rows(parts).items():
        columns.check(first, language=False)
        text = RunningText(language, encoder, length, columns.language)
        text({column: [value] for column, value in first.items()})  # finds now what a stream would find in training
        chunks[language] = parts[language].map(
            text, batched=True, batch_size=text.rows, remove_columns=list(first), features=features
        )
    encoder.check_padding()
    if silent := [language for language, part in chunks.items() if isinstance(part, Dataset) and not len(part)]:
        raise ValueError(f"There is no text in: {abridged(map(repr, silent))}. Leave these languages out.")
    return chunks


class RunningText:
    """Joins rows of one language and cuts them into chunks, as the function of `map(..., batched=True)`.

    Each call stands alone, so that reading can go on anywhere. What is left behind the last whole chunk is filled up
    with the first tokens of the call, so that nothing is lost, and a few tokens come twice.

    Args:
        language: The language.
        encoder: Encodes the rows.
        length: Tokens per chunk.
        language_column: Column of the chunks that names the language.
    """

    def __init__(self, language: str, encoder: RowEncoder, length: int, language_column: str) -> None:
        self._language = language
        self._encoder = encoder
        self._length = length
        self._column = language_column

    def __deepcopy__(self, memo: Any) -> "RunningText":
        """Itself: datasets copies functions of streams, and a tokenizer may be large."""
        return self

    @property
    def rows(self) -> int:
        """How many rows should be joined."""
        return min(self._length, ROWS_AT_A_TIME)

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Makes chunks of rows.

        Args:
            batch: Column to its values.

        Returns:
            `input_ids` and equal `labels`, each of `length` tokens, and the language; nothing of rows without text.

        Raises:
            TypeError: As `RowEncoder.encode`.
            ValueError: As `RowEncoder.encode`, or if rows are ready for training already.
        """
        _check_unprepared(batch, self._language)
        with _TOKENIZER:
            chunks = self._chunks(
                [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
            )
        return {"input_ids": chunks, "labels": chunks, self._column: [self._language] * len(chunks)}

    def _chunks(self, rows: Sequence[Row]) -> list[np.ndarray]:
        cutter = Cutter(self._encoder, self._length)
        tokens: list[int] = []
        for row in rows:
            ids = self._encoder.encode(row, self._language)
            if ids:
                cutter.see(self._language, row, ids)
                tokens += ids
        pieces = (piece.of(tokens) for piece in cutter.pieces(self._language, tokens))
        return [np.array([*ids, *islice(cycle(tokens), self._length - len(ids))]) for ids in pieces]


def _check_unprepared(columns: Mapping[str, Any], language: str) -> None:
    """Checks that rows bring no positions or labels, which would be lost.

    Raises:
        ValueError: If they do.
    """
    ready = [name for name in ("labels", "position_ids") if name in columns]
    if ready:
        raise ValueError(
            f"The rows of language {language!r} have {' and '.join(ready)}, so they are ready for training: mix them "
            f"as they are, without model, or leave {' and '.join(ready)} out to have chunks made of them."
        )
