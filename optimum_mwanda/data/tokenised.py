"""Rows that hold token ids: applies their masks and checks their values."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .padding import Padding
from .rows import Row

IGNORED_LABEL = -100  # what transformers leaves out of a loss, and data collators pad labels with


def tokenised_inputs(
    row: Row, language: str, vocabulary: int, positions: int | None, padding: Padding
) -> dict[str, list[int]]:
    """Token ids of a row, and its positions where it has any, without padding.

    Args:
        row: Holds `input_ids`, and perhaps `attention_mask` and `position_ids` with one entry per token.
        language: Its language, for messages.
        vocabulary: Number of ids that the model knows.
        positions: Number of positions that the model has; None if it has no bound.
        padding: Finds padding where there is no `attention_mask`.

    Returns:
        `input_ids` and, if given, `position_ids` of the same length.

    Raises:
        TypeError: If ids or positions are not whole numbers.
        ValueError: If lengths differ, the mask is not binary, or the model does not have an id or a position.
    """
    ids = _whole_numbers(row["input_ids"], "input_ids", language)
    given = row.get("position_ids")
    columns = {"input_ids": ids}
    if given is not None:
        columns["position_ids"] = _whole_numbers(given, "position_ids", language)
        _check_length(columns["position_ids"], ids, "position_ids", language)
    kept = padding.kept(ids) if row.get("attention_mask") is None else _kept(row, ids, language)
    columns = {name: values[kept] for name, values in columns.items()}
    check_vocabulary(columns["input_ids"], vocabulary, language)
    if given is not None:
        _check_positions(columns["position_ids"], positions, language)
    return {name: values.tolist() for name, values in columns.items()}


def tokenised_labels(row: Row, language: str, vocabulary: int, padding: Padding) -> list[int]:
    """Labels of a row, without those that are padding or mark it.

    Raises:
        TypeError: If labels are not whole numbers.
        ValueError: If a label lies outside the model's vocabulary.
    """
    labels = _whole_numbers(row["labels"], "labels", language)
    labels = labels[labels != IGNORED_LABEL]
    labels = labels[padding.kept(labels)]
    check_vocabulary(labels, vocabulary, language)
    return list(labels.tolist())


def check_vocabulary(ids: Sequence[int] | np.ndarray, vocabulary: int, language: str) -> None:
    """Checks that a model knows all token ids.

    Raises:
        ValueError: If it does not; the message names the first unknown one.
    """
    ids = np.asarray(ids)
    wrong = ids[(ids < 0) | (ids >= vocabulary)]
    if wrong.size:
        raise ValueError(
            f"Token id {wrong[0]} of language {language!r} lies outside the model's vocabulary of {vocabulary}: "
            "the dataset was tokenised for another model, or the tokenizer belongs to one. Use this model's tokenizer."
        )


def _whole_numbers(values: Any, column: str, language: str) -> np.ndarray:
    numbers = np.asarray(values).reshape(-1)
    if not numbers.size:
        return numbers.astype(np.int64)
    if numbers.dtype.kind not in "iu":
        raise TypeError(f"The {column} of language {language!r} are {numbers.dtype}: they must be whole numbers.")
    return numbers


def _check_length(values: np.ndarray, ids: np.ndarray, column: str, language: str) -> None:
    if values.size != ids.size:
        raise ValueError(
            f"A row of language {language!r} has {ids.size} input_ids and {values.size} entries in {column}: both "
            "must have one entry per token."
        )


def _kept(row: Row, ids: np.ndarray, language: str) -> np.ndarray:
    """Which tokens are not padding, by the row's attention mask."""
    mask = np.asarray(row["attention_mask"]).reshape(-1)
    _check_length(mask, ids, "attention_mask", language)
    kept = mask == 1
    if not (kept | (mask == 0)).all():
        raise ValueError(
            f"The attention_mask of language {language!r} holds {mask[~(kept | (mask == 0))][0]}: give 1 for a token "
            "and 0 for padding. To keep sequences in one packed row apart, give position_ids that restart."
        )
    return np.asarray(kept)


def _check_positions(values: np.ndarray, positions: int | None, language: str) -> None:
    wrong = values[(values < 0) | (values >= (positions or np.inf))]
    if wrong.size:
        bound = f"0 to {positions - 1}" if positions else "from 0"
        raise ValueError(f"Position {wrong[0]} of language {language!r} lies outside the model's positions: {bound}.")
