"""Datasets taken apart into languages."""

import tracemalloc
from collections.abc import Sequence
from typing import Any

import pyarrow
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, Value

from optimum_mwanda.data.by_language import first_rows, split_by_language
from optimum_mwanda.data.columns import Columns

COLUMNS = Columns("language", "text")
ROWS = [
    {"language": "sw", "text": "moja", "id": 1},
    {"language": "en", "text": "one", "id": 2},
    {"language": "sw", "text": "mbili", "id": 3},
]
APART = {"en": [ROWS[1]], "sw": [ROWS[0], ROWS[2]]}


def rows_of(parts: Any) -> dict[str, list[Any]]:
    return {language: list(part) for language, part in parts.items()}


def labelled() -> Dataset:
    features = Features({"language": ClassLabel(names=["sw", "en"]), "text": Value("string"), "id": Value("int64")})
    return Dataset.from_list([{**row, "language": ["sw", "en"].index(row["language"])} for row in ROWS], features)


@pytest.mark.parametrize("dataset", [ROWS, Dataset.from_list(ROWS)], ids=["list", "table"])
def test_rows_keep_their_columns_and_their_order(dataset: Any) -> None:
    parts = split_by_language(dataset, COLUMNS)
    assert rows_of(parts) == APART
    assert list(parts) == ["en", "sw"]
    assert list(split_by_language(dataset, COLUMNS, ["sw"])) == ["sw"]


def test_a_stream_is_split_by_the_languages_that_are_named() -> None:
    stream = Dataset.from_list(ROWS).to_iterable_dataset()
    assert rows_of(split_by_language(stream, COLUMNS, ["sw", "en"])) == APART
    with pytest.raises(ValueError, match="name those to mix with languages="):
        split_by_language(stream, COLUMNS)


@pytest.mark.parametrize("as_stream", [False, True])
def test_names_of_a_class_label_are_languages(as_stream: bool) -> None:
    dataset = labelled().to_iterable_dataset() if as_stream else labelled()
    parts = split_by_language(dataset, COLUMNS, ["en", "sw"])
    assert {language: [row["id"] for row in part] for language, part in parts.items()} == {"en": [2], "sw": [1, 3]}
    with pytest.raises(ValueError, match="Language 'fr' was asked for, but the dataset has: 'en', 'sw'"):
        split_by_language(dataset, COLUMNS, ["fr"])


def test_a_dict_names_the_language_of_its_rows() -> None:
    table = Dataset.from_dict({"text": ["moja", "mbili"]})
    expected = {"en": [{"text": "one", "language": "en"}], "sw": [{"text": t, "language": "sw"} for t in table["text"]]}
    assert rows_of(split_by_language({"sw": table, "en": ["one"]}, COLUMNS)) == expected
    assert rows_of(split_by_language({"sw": table["text"], "en": [{"text": "one"}]}, COLUMNS)) == expected


class Many(Sequence[str]):
    """Texts that are made when they are asked for."""

    def __len__(self) -> int:
        return 30_000

    def __getitem__(self, index: Any) -> Any:
        return f"{range(len(self))[index]} " + 100 * "w"


def test_texts_that_need_not_be_in_memory_stay_on_disk() -> None:
    before = pyarrow.total_allocated_bytes()
    tracemalloc.start()
    parts = split_by_language({"sw": Many(), "en": ["one"]}, COLUMNS)
    twice = parts["sw"].map(lambda rows: {"text": [2 * text for text in rows["text"]]}, batched=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak + pyarrow.total_allocated_bytes() - before < 30_000 * 100  # less than the texts themselves
    assert len(twice) == len(parts["sw"]) == 30_000
    assert parts["sw"][29_999] == {"text": Many()[29_999], "language": "sw"}
    assert rows_of({"en": parts["en"]}) == {"en": [{"text": "one", "language": "en"}]}


def test_errors_of_texts_that_need_not_be_in_memory_stay_what_they_are() -> None:
    class Broken(Many):
        def __getitem__(self, index: Any) -> Any:
            if index == 7:
                raise OSError("the disk is gone")
            return super().__getitem__(index)

    with pytest.raises(OSError, match="the disk is gone"):
        split_by_language({"sw": Broken()}, COLUMNS)


def test_one_stream_makes_streams_of_all() -> None:
    parts = split_by_language(
        {"sw": Dataset.from_dict({"text": ["moja"]}).to_iterable_dataset(), "en": ["one"]}, COLUMNS
    )
    assert all(isinstance(part, IterableDataset) for part in parts.values())
    assert rows_of(parts) == {"en": [{"text": "one", "language": "en"}], "sw": [{"text": "moja", "language": "sw"}]}


def test_a_language_without_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="There are no rows for: 'sw'"):
        first_rows(split_by_language({"sw": [], "en": ["one"]}, COLUMNS))
    stream = Dataset.from_list(ROWS).to_iterable_dataset()
    with pytest.raises(ValueError, match="There are no rows for: 'swa'"):
        first_rows(split_by_language(stream, COLUMNS, ["swa", "en"]))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (3, "A dataset of type int cannot be mixed"),
        ("text", "A dataset of type str cannot be mixed"),
        ({"sw": "moja"}, "holds a str for language 'sw'"),
        ({"sw": iter(["moja"])}, "What can be read only once cannot be read again"),
        ({3: ["moja"]}, "has the key 3"),
        (["moja"], "Row 0 of the list is a str"),
        ([{"text": "moja"}], "Column 'language' is missing"),
        ([], "The dataset has no language|Column 'language' is missing"),
        ({}, "The dataset has no language"),
        (DatasetDict(train=Dataset.from_list(ROWS)), "The dataset still has splits"),
    ],
)
def test_what_cannot_be_mixed_is_an_error(dataset: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        split_by_language(dataset, COLUMNS)
