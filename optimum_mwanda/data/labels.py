"""The languages that rows name."""

import difflib
import logging
import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from datasets import ClassLabel, Dataset

from ..utils import abridged
from .surrogates import check_whole

logger = logging.getLogger(__name__)

_LABELS_AT_A_TIME = 10_000

UNLABELLED = (
    "%d of %d rows name no language and are left out. If the dataset comes from CSV files, 'nan' and 'NA' may have "
    "been read as missing values: load it with keep_default_na=False."
)


def labels_of(dataset: Dataset, language_column: str) -> Iterator[Any]:
    """What the rows of a table hold in the language column, the integers of a `ClassLabel` as their codes."""
    decode = label_decoder(dataset.features, language_column)
    for part in dataset.with_format(None).select_columns([language_column]).iter(_LABELS_AT_A_TIME):
        yield from map(decode, part[language_column])


def group_rows(labels: Iterable[Any], language_column: str) -> "dict[str, array[int]]":
    """Numbers of the rows of each language, given what the rows hold in the language column; warns of those without.

    Raises:
        TypeError: If a language is not a string.
        ValueError: If it holds half of a character.
    """
    groups: dict[str, array[int]] = {}
    count = unlabelled = 0
    for count, label in enumerate(labels, start=1):
        language = checked_language(label, language_column, count - 1)
        if language is None:
            unlabelled += 1
        elif language in groups:
            groups[language].append(count - 1)
        else:
            groups[language] = array("q", [count - 1])
    if unlabelled:
        logger.warning(UNLABELLED, unlabelled, count)
    return groups


def label_decoder(features: Any, language_column: str) -> Callable[[Any], Any]:
    """Turns the integers of a `ClassLabel` column back into their codes."""
    feature = (features or {}).get(language_column)
    if isinstance(feature, ClassLabel):
        return lambda label: None if label is None or label < 0 else feature.int2str(label)
    return lambda label: label


def checked_language(language: Any, language_column: str, index: int) -> str | None:
    """What a row holds in the language column; None if it names no language.

    Raises:
        TypeError: If it is not a string.
        ValueError: If it holds half of a character.
    """
    if language is None or isinstance(language, str):
        check_whole(language or "", f"The language of row {index} (column {language_column!r})")
        return language or None
    raise TypeError(
        f"Column {language_column!r} must hold language codes as strings, but row {index} holds "
        f"{language!r} ({type(language).__name__}): convert the column to strings."
    )


def absent_language(language: str, present: Iterable[str]) -> ValueError:
    """The error for a language that a dataset does not have."""
    there = sorted(present)
    parts = [part for part in re.split(r"[,;\s]+", language) if part]
    near = difflib.get_close_matches(language.lower(), there, n=1, cutoff=0.75)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    if len(parts) > 1:
        hint = f" Name several one by one: languages={parts}, on the command line --languages {' '.join(parts)}."
    return ValueError(
        f"Language {language!r} was asked for, but the dataset has: {abridged(map(repr, there), 20) or 'none'}.{hint}"
    )
