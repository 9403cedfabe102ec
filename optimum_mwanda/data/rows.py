"""Rows with a language, from any kind of dataset that a user may have."""

import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from datasets.data_files import SPLIT_KEYWORDS

from ..utils import abridged
from .columns import Columns
from .labels import UNLABELLED, absent_language, checked_language, group_rows, label_decoder, labels_of
from .surrogates import check_whole

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]

SPLITS = {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words}
"""What splits are called to the split that is meant."""


class Sink(Protocol):
    """Takes the rows of a language until it has enough."""

    def add(self, language: str, row: Row) -> None: ...

    def is_full(self, language: str) -> bool: ...


class Pool(Sink, Protocol):
    """Takes the rows of streams, and chooses at the end which of them a sink gets."""

    def pour(self) -> None: ...


class Feeding:
    """Feeds the rows of a dataset to a sink, and no more rows than it needs, of which only the columns that it needs.

    A dataset with random access is read language by language, with its rows in an order drawn from `seed`. A stream is
    read in its own order, and only until every language in `languages` is full; without these, until all are full that
    its `ClassLabel` column names. A dict may hold a stream per language: each is read until its language is full.

    Languages are found and checked at once; rows are read while this is iterated over, which can be done once.

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

    def __init__(
        self,
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
        self._dataset, self._sink, self._pool = dataset, sink, pool
        self._columns = Columns(language_column, text_column, target_column)
        self._asked_for = languages
        self._rows = {} if isinstance(dataset, IterableDataset) else _open(dataset, self._columns, languages, seed)

    @property
    def languages(self) -> list[str] | None:
        """What languages are read, one after the other; None if all come from one stream, which may mix them."""
        return None if isinstance(self._dataset, IterableDataset) else [*self._rows]

    def __iter__(self) -> Iterator[str | None]:
        """Yields None after each row, so that reading can end there, and a language after its last row.

        One stream, which may mix its languages, yields nothing.

        Raises:
            TypeError: As above.
            ValueError: As above.
        """
        if isinstance(self._dataset, IterableDataset):
            _feed_stream(self._dataset, self._pool or self._sink, self._columns, self._asked_for)
            if self._pool is not None:
                self._pool.pour()
            return
        silent = []
        for language, rows in self._rows.items():
            is_silent = True
            is_drawn = isinstance(self._dataset, Mapping) and _is_stream(self._dataset[language])
            drawing = self._pool if is_drawn else None
            taking = drawing or self._sink
            for row in rows:
                is_silent = False
                taking.add(language, row)
                yield None
                if taking.is_full(language):  # a stream gives no row that nobody needs
                    break
            if drawing is not None:
                drawing.pour()
            if is_silent and self._asked_for is not None:
                raise absent_language(language, {*self._dataset} - {language})
            silent += [language] if is_silent else []
            yield language
        if silent:
            logger.warning("There are no texts for: %s.", abridged(map(repr, silent)))


def feed(dataset: Any, sink: Sink, **options: Any) -> None:
    """Feeds all rows at once; takes what `Feeding` takes, and raises the same errors."""
    for _ in Feeding(dataset, sink, **options):
        pass


def is_read_in_order(dataset: Any) -> bool:
    """Whether rows come in an order of their own, so that nobody knows how many there are."""
    if isinstance(dataset, Mapping):
        return any(map(_is_stream, dataset.values()))
    return isinstance(dataset, IterableDataset)


def is_read_in_any_thread(dataset: Any) -> bool:
    """Whether each language can be read in another thread than the one before; of other types, nobody knows."""
    if isinstance(dataset, Mapping):
        return all(isinstance(part, (list, tuple, Dataset, IterableDataset)) for part in dataset.values())
    return isinstance(dataset, (list, tuple, Dataset))


def _is_stream(texts: Any) -> bool:
    """Whether the texts of one language come in an order of their own."""
    return not isinstance(texts, (Dataset, Sequence))


def _open(dataset: Any, columns: Columns, languages: Sequence[str] | None, seed: int) -> dict[str, Iterator[Row]]:
    """Language to its rows, which are read when they are asked for; languages in the order in which to read them."""
    if isinstance(dataset, Mapping):
        _check_dict(dataset, columns)
        return {language: _rows_of(dataset[language], columns, seed) for language in _wanted(languages, dataset)}
    row_at, labels = _open_table(dataset, columns) if isinstance(dataset, Dataset) else _open_list(dataset, columns)
    groups = group_rows(labels, columns.language)
    return {language: _drawn(row_at, groups[language], seed) for language in _wanted(languages, groups)}


def _wanted(languages: Sequence[str] | None, present: Collection[str]) -> Iterable[str]:
    for language in languages or ():
        if language not in present:
            raise absent_language(language, present)
    return sorted(present) if languages is None else dict.fromkeys(languages)


def _drawn(row_at: Callable[[int], Any], positions: Sequence[int], seed: int) -> Iterator[Any]:
    """What is at some positions, in random order."""
    for index in np.random.default_rng(seed).permutation(len(positions)):
        yield row_at(positions[index])


def _open_table(dataset: Dataset, columns: Columns) -> tuple[Callable[[int], Row], Iterable[Any]]:
    columns.check(dataset.features)
    return select_needed(dataset, columns).__getitem__, labels_of(dataset, columns.language)


def _open_list(dataset: Any, columns: Columns) -> tuple[Callable[[int], Row], Iterable[Any]]:
    if not isinstance(dataset, Sequence) or isinstance(dataset, (str, bytes)):
        raise TypeError(
            f"A dataset of type {type(dataset).__name__} cannot be read: pass a datasets.Dataset or IterableDataset "
            "with a language column, a dict of language to texts, or a list of rows (dicts)."
        )
    for index, row in enumerate(dataset):
        if not isinstance(row, Mapping):
            raise TypeError(f"Row {index} of the list is a {type(row).__name__}: rows are dicts of column to value.")
        columns.check(row, f" in row {index}", indexed=False)
    return dataset.__getitem__, (row[columns.language] for row in dataset)


def _check_dict(dataset: Mapping[str, Any], columns: Columns) -> None:
    if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        check_parts(dataset, columns)
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


def _rows_of(texts: Any, columns: Columns, seed: int) -> Iterator[Row]:
    """The rows of one language: in random order where any can be looked up, else in their own."""
    if isinstance(texts, (Dataset, IterableDataset)):
        if texts.features is not None:
            columns.check(texts.features, language=False)
        texts = select_needed(texts, columns)
    for text in texts if _is_stream(texts) else _drawn(texts.__getitem__, range(len(texts)), seed):
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
        language = checked_language(decode(row[columns.language]), columns.language, index)
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
        logger.warning(UNLABELLED, unlabelled, index + 1)


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
