"""Rows with a language, from any kind of dataset that a user may have."""

import difflib
import logging
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from datasets.data_files import SPLIT_KEYWORDS

from ..utils import abridged
from .columns import Columns
from .surrogates import check_whole

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]

SPLITS = {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words}
"""What splits are called to the split that is meant."""


_LABELS_AT_A_TIME = 10_000

_UNLABELLED = (
    "%d of %d rows name no language and are left out. If the dataset comes from CSV files, 'nan' and 'NA' may have "
    "been read as missing values: load it with keep_default_na=False."
)


class Sink(Protocol):
    """Takes the rows of a language until it has enough."""

    def add(self, language: str, row: Row) -> None: ...

    def is_full(self, language: str) -> bool: ...


class Pool(Sink, Protocol):
    """Takes the rows of streams, and chooses at the end which of them a sink gets."""

    def pour(self) -> None: ...


def feed(
    dataset: Any,
    sink: Sink,
    *,
    language_column: str,
    text_column: str,
    target_column: str | None = None,
    languages: Sequence[str] | None = None,
    seed: int = 0,
    pool: Pool | None = None,
) -> None:
    """Feeds the rows of a dataset to a sink, and no more rows than it needs, of which only the columns that it needs.

    A dataset with random access is read language by language, with its rows in an order drawn from `seed`. A stream is
    read in its own order, and only until every language in `languages` is full; without these, until all are full that
    its `ClassLabel` column names. A dict may hold a stream per language: each is read until its language is full.

    Args:
        dataset: `datasets.Dataset`, `datasets.IterableDataset`, a dict of language to texts or to a dataset, or a list
            of rows.
        sink: Takes the rows.
        language_column: Column that names the language.
        text_column: Column with the text; not needed if there is an `input_ids` column.
        target_column: Column with the target for an encoder-decoder, which may have `input_ids` and `labels` instead;
            None for every other model.
        languages: Languages to read; None for all.
        seed: Seed for the order of the rows.
        pool: Takes the rows of streams, to choose those that the sink gets; None: the sink gets them as they come.

    Raises:
        TypeError: If `dataset` is none of these, or languages are not strings.
        ValueError: If a column is missing, or a language in `languages` is absent.
    """
    columns = Columns(language_column, text_column, target_column)
    if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        check_parts(dataset, columns)
    if isinstance(dataset, IterableDataset):
        _feed_stream(dataset, pool or sink, columns, languages)
        if pool is not None:
            pool.pour()
        return
    if isinstance(dataset, Mapping):
        _feed_dict(dataset, sink, columns, languages, seed, pool)
        return
    if isinstance(dataset, Dataset):
        row_at, labels = _open_table(dataset, columns)
    elif isinstance(dataset, Sequence) and not isinstance(dataset, (str, bytes)):
        row_at, labels = _open_list(dataset, columns)
    else:
        raise TypeError(
            f"A dataset of type {type(dataset).__name__} cannot be read: pass a datasets.Dataset or IterableDataset "
            "with a language column, a dict of language to texts, or a list of rows (dicts)."
        )
    groups = group_rows(labels, language_column)
    for language in sorted(groups) if languages is None else dict.fromkeys(languages):
        if language not in groups:
            raise absent_language(language, groups)
        for position in np.random.default_rng(seed).permutation(len(groups[language])):
            if sink.is_full(language):
                break
            sink.add(language, row_at(groups[language][position]))


def is_read_in_order(dataset: Any) -> bool:
    """Whether rows come in an order of their own, so that nobody knows how many there are."""
    if isinstance(dataset, Mapping):
        return any(map(_is_stream, dataset.values()))
    return isinstance(dataset, IterableDataset)


def _is_stream(texts: Any) -> bool:
    """Whether the texts of one language come in an order of their own."""
    return not isinstance(texts, (Dataset, Sequence))


def _open_table(dataset: Dataset, columns: Columns) -> tuple[Callable[[int], Row], Iterable[Any]]:
    columns.check(dataset.features)
    return select_needed(dataset, columns).__getitem__, labels_of(dataset, columns.language)


def labels_of(dataset: Dataset, language_column: str) -> Iterator[Any]:
    """What the rows of a table hold in the language column, the integers of a `ClassLabel` as their codes."""
    decode = label_decoder(dataset.features, language_column)
    for part in dataset.with_format(None).select_columns([language_column]).iter(_LABELS_AT_A_TIME):
        yield from map(decode, part[language_column])


def _open_list(dataset: Sequence[Any], columns: Columns) -> tuple[Callable[[int], Row], Iterable[Any]]:
    for index, row in enumerate(dataset):
        if not isinstance(row, Mapping):
            raise TypeError(f"Row {index} of the list is a {type(row).__name__}: rows are dicts of column to value.")
        columns.check(row, f" in row {index}", indexed=False)
    return dataset.__getitem__, (row[columns.language] for row in dataset)


def _feed_dict(
    dataset: Mapping[str, Any],
    sink: Sink,
    columns: Columns,
    languages: Sequence[str] | None,
    seed: int,
    pool: Pool | None,
) -> None:
    if columns.language in dataset and (columns.text in dataset or "input_ids" in dataset):
        raise ValueError(
            f"The dict has the columns {', '.join(map(repr, dataset))}: pass it as Dataset.from_dict(...). A plain "
            "dict maps each language to its texts."
        )
    for language, texts in dataset.items():
        if not isinstance(language, str) or not language:
            raise TypeError(f"The dict of texts has the key {language!r}: its keys are language codes as strings.")
        check_whole(language, "A language of the dict")
        if isinstance(texts, (str, bytes, Mapping)) or not isinstance(texts, Iterable):
            raise TypeError(
                f"The dict of texts holds a {type(texts).__name__} for language {language!r}: give a list of texts."
            )
    silent = []
    for language in sorted(dataset) if languages is None else dict.fromkeys(languages):
        if language not in dataset:
            raise absent_language(language, dataset)
        is_silent = True
        drawing = pool if _is_stream(dataset[language]) else None
        taking = drawing or sink
        for row in _rows_of(dataset[language], columns, seed):
            is_silent = False
            taking.add(language, row)
            if taking.is_full(language):  # a stream gives no row that nobody needs
                break
        if drawing is not None:
            drawing.pour()
        if is_silent and languages is not None:
            raise absent_language(language, {*dataset} - {language})
        silent += [language] if is_silent else []
    if silent:
        logger.warning("There are no texts for: %s.", abridged(map(repr, silent)))


def _rows_of(texts: Any, columns: Columns, seed: int) -> Iterator[Row]:
    """The rows of one language: in random order where any can be looked up, else in their own."""
    if isinstance(texts, (Dataset, IterableDataset)):
        if texts.features is not None:
            columns.check(texts.features, language=False)
        texts = select_needed(texts, columns)
    if not _is_stream(texts):
        found = (texts[int(index)] for index in np.random.default_rng(seed).permutation(len(texts)))
    else:
        found = iter(texts)
    for text in found:
        row = text if isinstance(text, Mapping) else {columns.text: text}
        columns.check(row, language=False)
        yield row


def _feed_stream(dataset: IterableDataset, sink: Sink, columns: Columns, languages: Sequence[str] | None) -> None:
    decode = label_decoder(dataset.features, columns.language)
    wanted = _known_languages(dataset, columns) if languages is None else {*languages}
    if wanted is None:
        logger.warning(
            "Without `languages` a streaming dataset is read to its end, because any row may bring a new language: "
            "name the languages, or pass dataset.take(n)."
        )
    if dataset.features is not None:
        columns.check(dataset.features)
    seen: set[str] = set()
    full: set[str] = set()
    unlabelled = 0
    for index, row in enumerate(select_needed(dataset, columns)):
        columns.check(row, f" in row {index}" if index else "")
        language = _checked_language(decode(row[columns.language]), columns.language, index)
        if language is None:
            unlabelled += 1
            continue
        seen.add(language)
        if language in full or (wanted is not None and language not in wanted):
            continue
        sink.add(language, row)
        if sink.is_full(language):
            full.add(language)
            if full == wanted:
                break
    else:
        for language in languages or ():
            if language not in seen:
                raise absent_language(language, seen)
    if unlabelled:
        logger.warning(_UNLABELLED, unlabelled, index + 1)


def _known_languages(dataset: IterableDataset, columns: Columns) -> set[str] | None:
    """The languages that a stream says it has; None if it does not say so."""
    feature = (dataset.features or {}).get(columns.language)
    return {*feature.names} if isinstance(feature, ClassLabel) else None


def select_needed(dataset: Any, columns: Columns) -> Any:
    """The dataset as plain rows, without columns that nobody needs: decoding an image takes time and other packages."""
    present = dataset.column_names
    return (dataset if present is None else dataset.select_columns(columns.needed(present))).with_format(None)


def check_parts(dataset: Mapping[str, Any], columns: Columns) -> None:
    """Checks that the parts of a `DatasetDict` are languages, as in a plain dict.

    Raises:
        ValueError: If they are splits.
    """
    if is_by_language(dataset, columns.language):
        return
    first = next(iter(dataset), "train")
    raise ValueError(
        f"The dataset still has splits ({', '.join(map(repr, dataset))}): pass one of them, dataset[{first!r}]. If "
        "each is a language, pass dict(dataset)."
    )


def is_by_language(dataset: Mapping[str, Any], language_column: str) -> bool:
    """Whether the parts of a `DatasetDict` are languages: they have no column for it, and are not called as splits."""
    named = any(re.split(r"[\W_\d]", name)[0].lower() in SPLITS for name in map(str, dataset))
    labelled = any(language_column in (part.column_names or ()) for part in dataset.values())
    return bool(dataset) and not named and not labelled


def group_rows(labels: Iterable[Any], language_column: str) -> "dict[str, array[int]]":
    """Numbers of the rows of each language, given what the rows hold in the language column; warns of those without.

    Raises:
        TypeError: If a language is not a string.
        ValueError: If it holds half of a character.
    """
    groups: dict[str, array[int]] = {}
    count = unlabelled = 0
    for count, label in enumerate(labels, start=1):
        language = _checked_language(label, language_column, count - 1)
        if language is None:
            unlabelled += 1
        elif language in groups:
            groups[language].append(count - 1)
        else:
            groups[language] = array("q", [count - 1])
    if unlabelled:
        logger.warning(_UNLABELLED, unlabelled, count)
    return groups


def label_decoder(features: Any, language_column: str) -> Callable[[Any], Any]:
    """Turns the integers of a `ClassLabel` column back into their codes."""
    feature = (features or {}).get(language_column)
    if isinstance(feature, ClassLabel):
        return lambda label: None if label is None or label < 0 else feature.int2str(label)
    return lambda label: label


def _checked_language(language: Any, language_column: str, index: int) -> str | None:
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
