"""A dataset taken apart into languages, with all of its rows and columns as they are."""

import operator
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict, Value
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import get_temporary_cache_files_directory

from ..utils import abridged
from .columns import Columns
from .labels import absent_language, group_rows, labels_of
from .rows import check_parts


def split_by_language(
    dataset: Any, columns: Columns, languages: Sequence[str] | None = None
) -> dict[str, Dataset] | dict[str, IterableDataset]:
    """Takes a dataset apart, and reads nothing of streams.

    Args:
        dataset: `datasets.Dataset`, `datasets.IterableDataset`, a list of rows, or a dict of language to texts, to rows
            or to one of these datasets.
        columns: Its language and text columns. A column for the language is added where there is none.
        languages: Languages to take; None for all. A stream with a language column needs them.

    Returns:
        Language, in sorted order, to its rows: all of them datasets with random access, or all of them streams.

    Raises:
        TypeError: If `dataset` is none of these, or languages are not strings.
        ValueError: If a language is absent, the language column is missing, or a stream is given without
            `languages`.
    """
    if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        check_parts(dataset, columns)
    if isinstance(dataset, Mapping):
        parts = {language: _with_language(texts, language, columns) for language, texts in dataset.items()}
    elif isinstance(dataset, IterableDataset):
        parts = _filtered(dataset, columns, languages)
    elif isinstance(dataset, (Dataset, Sequence)) and not isinstance(dataset, (str, bytes)):
        parts = _grouped(dataset if isinstance(dataset, Dataset) else _from_rows(dataset), columns)
    else:
        raise TypeError(
            f"A dataset of type {type(dataset).__name__} cannot be mixed: pass a datasets.Dataset or IterableDataset "
            "with a language column, a dict of language to one of these or to a list of texts, or a list of rows."
        )
    for language in languages or ():
        if language not in parts:
            raise absent_language(language, parts)
    wanted = sorted(parts if languages is None else {*languages})
    if not wanted:
        raise ValueError("The dataset has no language: give at least one row with a language, or one text.")
    if any(isinstance(parts[language], IterableDataset) for language in wanted):
        return {language: _as_stream(parts[language]) for language in wanted}
    return {language: parts[language] for language in wanted}


def _grouped(dataset: Dataset, columns: Columns) -> dict[str, Any]:
    if columns.language not in dataset.column_names:
        columns.check(dataset.features)
    groups = group_rows(labels_of(dataset, columns.language), columns.language)
    return {language: dataset.select(numbers) for language, numbers in groups.items()}


def _filtered(dataset: IterableDataset, columns: Columns, languages: Sequence[str] | None) -> dict[str, Any]:
    if languages is None:
        raise ValueError(
            "The languages of a stream are known only at its end: name those to mix with languages=, or give a dict of "
            "language to stream."
        )
    if dataset.features is not None and columns.language not in dataset.features:
        columns.check(dataset.features)
    feature = (dataset.features or {}).get(columns.language)
    parts = {}
    for language in dict.fromkeys(languages):
        if isinstance(feature, ClassLabel) and language not in feature.names:
            raise absent_language(language, feature.names)
        label = feature.str2int(language) if isinstance(feature, ClassLabel) else language
        parts[language] = dataset.filter(partial(operator.eq, label), input_columns=[columns.language])
    return parts


def _with_language(texts: Any, language: Any, columns: Columns) -> Any:
    """The rows of one language, with a column that names it."""
    if not isinstance(language, str) or not language:
        raise TypeError(f"The dict of texts has the key {language!r}: its keys are language codes as strings.")
    if isinstance(texts, (str, bytes, Mapping, Iterator)) or not isinstance(texts, (Iterable, Dataset)):
        raise TypeError(
            f"The dict of texts holds a {type(texts).__name__} for language {language!r}: give a list of texts, or a "
            "datasets.Dataset or IterableDataset. What can be read only once cannot be read again."
        )
    if isinstance(texts, Sequence):
        is_elsewhere = not isinstance(texts, (list, tuple)) and len(texts) > 0 and isinstance(texts[0], str)
        texts = _on_disk(texts, language, columns) if is_elsewhere else _from_rows(_as_rows(texts, columns.text))
    elif not isinstance(texts, (Dataset, IterableDataset)):
        texts = IterableDataset.from_generator(partial(_as_rows, texts, columns.text))
    if columns.language in (texts.column_names or ()):
        return texts
    if isinstance(texts, Dataset):
        return texts.add_column(columns.language, [language] * len(texts))
    features = texts.features and Features({**texts.features, columns.language: Value("string")})
    return texts.map(partial(_labelled, column=columns.language, language=language), features=features)


def _as_rows(texts: Iterable[Any], column: str) -> Iterator[Mapping[str, Any]]:
    """Yields rows, made of texts where there are no rows."""
    for text in texts:
        yield text if isinstance(text, Mapping) else {column: text}


def _labelled(row: Mapping[str, Any], column: str, language: str) -> dict[str, Any]:
    return {column: language}


def _from_rows(rows: Iterable[Any]) -> Dataset:
    rows = list(rows)
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise TypeError(f"Row {index} of the list is a {type(row).__name__}: rows are dicts of column to value.")
    return Dataset.from_list(rows)


def _on_disk(texts: Sequence[str], language: str, columns: Columns) -> Dataset:
    """What need not be in memory, such as the lines of a file, stays on disk for as long as this process runs."""
    folder = tempfile.mkdtemp(dir=get_temporary_cache_files_directory())  # what is in it is this call's alone
    features = Features({columns.text: Value("string"), columns.language: Value("string")})
    rows = partial(_rows_of, texts, language, columns)
    try:
        return Dataset.from_generator(rows, features=features, cache_dir=folder)
    except DatasetGenerationError as error:
        raise error.__cause__ or error from None


def _rows_of(texts: Iterable[str], language: str, columns: Columns) -> Iterator[Mapping[str, str]]:
    for text in texts:
        yield {columns.text: text, columns.language: language}


def _as_stream(part: Dataset | IterableDataset) -> IterableDataset:
    return part if isinstance(part, IterableDataset) else part.to_iterable_dataset()


def first_rows(parts: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The first row of each language, by which wrong input is found before any training.

    Raises:
        ValueError: If a language has none.
    """
    rows = {language: next(iter(part), None) for language, part in parts.items()}
    if silent := [language for language, row in rows.items() if row is None]:
        raise ValueError(
            f"There are no rows for: {abridged(map(repr, silent))}. Leave these languages out, or correct their codes."
        )
    return {language: row for language, row in rows.items() if row is not None}
