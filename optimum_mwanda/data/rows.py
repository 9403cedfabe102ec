"""Rows with a language, from any kind of dataset that a user may have."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from .surrogates import check_whole

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the columns to read.

    Attributes:
        language: Column with the language of a row.
        text: Column with the text; not needed if there are `input_ids`.
        target: Column with the target for an encoder-decoder; not needed if there are `input_ids` and `labels`. None
            for every other model.
    """

    language: str
    text: str
    target: str | None = None

    def hold_ids(self, present: Iterable[str]) -> bool:
        """Whether rows with these columns are tokenised."""
        return {"input_ids", "labels"} <= {*present} if self.target else "input_ids" in present

    def check(self, present: Sequence[str] | None, where: str = "", language: bool = True) -> None:
        """Checks that a dataset or a row has the columns that are needed.

        Args:
            present: Its columns.
            where: Which row it is, for messages.
            language: Whether it needs a language column.

        Raises:
            ValueError: If a column is missing.
        """
        present = present or ()
        needed = {"language_column": self.language} if language else {}
        if not self.hold_ids(present):
            needed |= {"text_column": self.text} | ({"target_column": self.target} if self.target else {})
        for setting, column in needed.items():
            if column not in present:
                advice = f"Name the right one with {setting}."
                if self.target and setting != "language_column":
                    advice = (
                        "An encoder-decoder needs a source and a target: name their columns with text_column and "
                        "target_column, or give 'input_ids' and 'labels'."
                    )
                raise ValueError(
                    f"Column {column!r} is missing{where}. The dataset has: {', '.join(map(repr, present))}. {advice}"
                )


class Sink(Protocol):
    """Takes the rows of a language until it has enough."""

    def add(self, language: str, row: Row) -> None: ...

    def is_full(self, language: str) -> bool: ...


def feed(
    dataset: Any,
    sink: Sink,
    *,
    language_column: str,
    text_column: str,
    target_column: str | None = None,
    languages: Sequence[str] | None = None,
    seed: int = 0,
) -> None:
    """Feeds the rows of a dataset to a sink, and no more rows than it needs.

    A dataset with random access is read language by language, with its rows in an order drawn from `seed`. A stream is
    read in its own order, and only until every language in `languages` is full.

    Args:
        dataset: `datasets.Dataset`, `datasets.IterableDataset`, a dict of language to texts, or a list of rows.
        sink: Takes the rows.
        language_column: Column that names the language.
        text_column: Column with the text; not needed if there is an `input_ids` column.
        target_column: Column with the target for an encoder-decoder, which may have `input_ids` and `labels` instead;
            None for every other model.
        languages: Languages to read; None for all.
        seed: Seed for the order of the rows.

    Raises:
        TypeError: If `dataset` is none of these, or languages are not strings.
        ValueError: If a column is missing, or a language in `languages` is absent.
    """
    columns = Columns(language_column, text_column, target_column)
    if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        splits = ", ".join(map(repr, dataset))
        raise ValueError(
            f"The dataset still has splits ({splits}): pass one of them, dataset[{next(iter(dataset))!r}]."
        )
    if isinstance(dataset, IterableDataset):
        _feed_stream(dataset, sink, columns, languages)
        return
    if isinstance(dataset, Dataset):
        row_at, labels = _open_table(dataset, columns)
    elif isinstance(dataset, Mapping):
        row_at, labels = _open_dict(dataset, columns)
    elif isinstance(dataset, Sequence) and not isinstance(dataset, (str, bytes)):
        row_at, labels = _open_list(dataset, columns)
    else:
        raise TypeError(
            f"A dataset of type {type(dataset).__name__} cannot be read: pass a datasets.Dataset or IterableDataset "
            "with a language column, a dict of language to texts, or a list of rows (dicts)."
        )
    groups = _group(labels, language_column)
    for language in sorted(groups) if languages is None else dict.fromkeys(languages):
        if language not in groups:
            raise _absent(language, groups)
        for position in np.random.default_rng(seed).permutation(len(groups[language])):
            if sink.is_full(language):
                break
            sink.add(language, row_at(groups[language][position]))


def _open_table(dataset: Dataset, columns: Columns) -> tuple[Callable[[int], Row], list[Any]]:
    columns.check(dataset.column_names)
    table = dataset.with_format(None)
    labels = table.select_columns([columns.language])[:][columns.language]
    decode = _label_decoder(dataset.features, columns.language)
    return table.__getitem__, [decode(label) for label in labels]


def _open_dict(dataset: Mapping[str, Any], columns: Columns) -> tuple[Callable[[int], Row], list[Any]]:
    if columns.language in dataset and (columns.text in dataset or "input_ids" in dataset):
        raise ValueError(
            f"The dict has the columns {', '.join(map(repr, dataset))}: pass it as Dataset.from_dict(...). A plain "
            "dict maps each language to its texts."
        )
    rows: list[Row] = []
    labels: list[Any] = []
    for language, texts in dataset.items():
        if isinstance(texts, (str, bytes, Mapping)) or not isinstance(texts, Iterable):
            raise TypeError(
                f"The dict of texts holds a {type(texts).__name__} for language {language!r}: give a list of texts."
            )
        for text in texts:
            rows.append(text if isinstance(text, Mapping) else {columns.text: text})
            labels.append(language)
    if silent := [language for language in dataset if language not in labels]:
        logger.warning("There are no texts for: %s.", ", ".join(map(repr, silent)))
    for row in rows:
        columns.check(list(row), language=False)
    return rows.__getitem__, labels


def _open_list(dataset: Sequence[Any], columns: Columns) -> tuple[Callable[[int], Row], list[Any]]:
    for index, row in enumerate(dataset):
        if not isinstance(row, Mapping):
            raise TypeError(f"Row {index} of the list is a {type(row).__name__}: rows are dicts of column to value.")
        columns.check(list(row), f" in row {index}")
    return dataset.__getitem__, [row[columns.language] for row in dataset]


def _feed_stream(dataset: IterableDataset, sink: Sink, columns: Columns, languages: Sequence[str] | None) -> None:
    if languages is None:
        logger.warning(
            "Without `languages` a streaming dataset is read to its end, because any row may bring a new language: "
            "name the languages, or pass dataset.take(n)."
        )
    decode = _label_decoder(dataset.features, columns.language)
    seen: set[str] = set()
    for index, row in enumerate(dataset):
        columns.check(list(row), f" in row {index}" if index else "")
        language = _checked_language(decode(row[columns.language]), columns.language, index)
        if language is None:
            continue
        seen.add(language)
        if languages is not None and language not in languages:
            continue
        if not sink.is_full(language):
            sink.add(language, row)
            if languages is not None and all(map(sink.is_full, languages)):
                return
    for language in languages or ():
        if language not in seen:
            raise _absent(language, seen)


def _group(labels: list[Any], language_column: str) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    unlabelled = 0
    for index, label in enumerate(labels):
        language = _checked_language(label, language_column, index)
        if language is None:
            unlabelled += 1
        else:
            groups.setdefault(language, []).append(index)
    if unlabelled:
        logger.warning("%d of %d rows name no language and are left out.", unlabelled, len(labels))
    return groups


def _label_decoder(features: Any, language_column: str) -> Callable[[Any], Any]:
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


def _absent(language: str, present: Iterable[str]) -> ValueError:
    return ValueError(
        f"Language {language!r} was asked for, but the dataset has: {', '.join(map(repr, sorted(present))) or 'none'}."
    )
