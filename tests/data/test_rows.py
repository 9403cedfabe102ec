"""Rows in the shapes in which people keep them."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, Features, Image, IterableDataset, IterableDatasetDict, Translation, Value

from optimum_mwanda.data.columns import read_wide
from optimum_mwanda.data.rows import feed

TEXTS = {"en": ["the cat", "the mat"], "sw": ["paka", "mkeka"]}
ROWS = [{"language": language, "text": text} for language, texts in TEXTS.items() for text in texts]


class Gathered:
    """Takes so many rows per language."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.rows: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)

    def add(self, language: str, row: Any) -> None:
        self.rows[language].append(dict(row))

    def is_full(self, language: str) -> bool:
        return len(self.rows[language]) >= self.limit


def gather(dataset: Any, limit: int = 9, **options: Any) -> dict[str, list[str]]:
    sink = Gathered(limit)
    feed(dataset, sink, **{"language_column": "language", "text_column": "text", **options})
    return {language: sorted(row["text"] for row in rows) for language, rows in sink.rows.items()}


def counted(language: str, read: list[str]) -> IterableDataset:
    def generate() -> Iterator[dict[str, str]]:
        for number in range(100):
            read.append(language)
            yield {"text": f"{language} {number}"}

    return IterableDataset.from_generator(generate)


def pictured(rows: list[dict[str, str]]) -> Dataset:
    """A dataset with a column that cannot be decoded."""
    table = Dataset.from_list([{**row, "picture": {"bytes": b"no picture", "path": None}} for row in rows])
    return table.cast_column("picture", Image())


PICTURED: dict[str, Callable[[], Any]] = {
    "Dataset": lambda: pictured(ROWS),
    "stream": lambda: pictured(ROWS).to_iterable_dataset(),
    "dict": lambda: {code: pictured(ROWS).filter(_is(code), input_columns="language") for code in TEXTS},
    "dict of streams": lambda: {
        code: pictured([{"text": text} for text in texts]).to_iterable_dataset() for code, texts in TEXTS.items()
    },
    "beside texts, stream": lambda: read_wide(
        Dataset.from_list([{"all": {**row, "picture": {"bytes": b"no picture", "path": None}}} for row in _wide()])
        .cast(Features({"all": {"en": Value("string"), "sw": Value("string"), "picture": Image()}}))
        .to_iterable_dataset(),
        {"en": "all.en", "sw": "all.sw"},
    ),
    "wide": lambda: read_wide(pictured(_wide()), {"en": "en", "sw": "sw"}),
    "wide stream": lambda: read_wide(pictured(_wide()).to_iterable_dataset(), {"en": "en", "sw": "sw"}),
}


def _is(code: str) -> Callable[[str], bool]:
    return lambda language: language == code


def _wide() -> list[dict[str, str]]:
    return [dict(zip(TEXTS, texts, strict=True)) for texts in zip(*TEXTS.values(), strict=True)]


@pytest.mark.parametrize("kind", PICTURED)
def test_columns_that_nobody_needs_are_not_decoded(kind: str) -> None:
    with pytest.raises(Exception, match="identify image"):
        pictured(ROWS)[0]
    assert gather(PICTURED[kind]()) == {"en": ["the cat", "the mat"], "sw": ["mkeka", "paka"]}


@pytest.mark.parametrize("kind", ["numpy", "torch", "arrow", "pandas"])
@pytest.mark.parametrize("stream", [False, True])
def test_format_in_which_a_dataset_gives_its_rows_does_not_matter(stream: bool, kind: str) -> None:
    table = Dataset.from_list(ROWS)
    formatted = (table.to_iterable_dataset() if stream else table).with_format(kind)
    assert gather(formatted) == {code: sorted(texts) for code, texts in TEXTS.items()}
    assert gather({"en": formatted}) == {"en": sorted(row["text"] for row in ROWS)}


def test_each_stream_of_a_dict_is_read_no_further_than_its_language_needs() -> None:
    read: list[str] = []
    found = gather({code: counted(code, read) for code in ("en", "sw")}, limit=3)
    assert found == {code: [f"{code} 0", f"{code} 1", f"{code} 2"] for code in ("en", "sw")}
    assert read == ["en"] * 3 + ["sw"] * 3
    assert gather({code: counted(code, read) for code in ("en", "sw")}, limit=3, languages=["sw"]).keys() == {"sw"}
    assert read[6:] == ["sw"] * 3


@pytest.mark.parametrize("kind", [DatasetDict, IterableDatasetDict])
def test_dataset_dict_whose_parts_are_languages_is_read_as_a_dict(kind: type) -> None:
    parts = {code: Dataset.from_dict({"text": texts}) for code, texts in TEXTS.items()}
    if kind is IterableDatasetDict:
        parts = {code: part.to_iterable_dataset() for code, part in parts.items()}
    assert gather(kind(parts)) == {code: sorted(texts) for code, texts in TEXTS.items()}


@pytest.mark.parametrize("name", ["train", "validation", "dev_1", "test-sw"])
def test_dataset_dict_of_splits_is_not_taken_for_languages(name: str) -> None:
    with pytest.raises(ValueError, match=rf"splits.*dataset\['{name}'\]"):
        gather(DatasetDict({name: Dataset.from_dict({"text": ["a"]})}))


SHAPES: dict[str, tuple[Any, str, str]] = {
    "only text": (Dataset.from_dict({"text": TEXTS["en"]}), "{'en': dataset['text']}", "--columns en=text)"),
    "only text, list": ([{"text": "a"}], "{'en': [row['text'] for row in dataset]}", "--columns en=text)"),
    "only text of another name": (
        Dataset.from_dict({"id": [1, 2], "sentence": TEXTS["en"]}),
        "{'en': dataset['sentence']}",
        "--columns en=sentence)",
    ),
    "wide": (Dataset.from_list(_wide()), "{'en': dataset['en'], 'sw': dataset['sw']}", "--columns en=en sw=sw)"),
    "translation": (
        Dataset.from_list(
            [{"id": "1", "translation": row} for row in _wide()],
            features=Features({"id": Value("string"), "translation": Translation(("en", "sw"))}),
        ),
        "{'en': [row['translation']['en'] for row in dataset], 'sw': [row['translation']['sw'] for row in dataset]}",
        "--columns en=translation.en sw=translation.sw)",
    ),
    "structs": (
        Dataset.from_list([{"translation": row} for row in _wide()]).to_iterable_dataset(),
        "{'en': [row['translation']['en'] for row in dataset], 'sw': [row['translation']['sw'] for row in dataset]}",
        "--columns en=translation.en sw=translation.sw)",
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_table_of_another_shape_is_told_how_to_pass_it_and_is_read_so(shape: str) -> None:
    dataset, expression, flag = SHAPES[shape]
    with pytest.raises(ValueError, match="Column 'language' is missing") as raised:
        gather(dataset)
    assert f"pass {expression} (on the command line: {flag}" in str(raised.value)
    found = gather(eval(expression, {"dataset": dataset}))
    assert found.keys() <= TEXTS.keys()
    if not isinstance(dataset, list):
        assert found == {code: sorted(TEXTS[code]) for code in found}
        flags = dict(pair.split("=") for pair in flag.removesuffix(")").split()[1:])
        assert gather(read_wide(dataset, flags)) == found


@pytest.mark.parametrize(("path", "named"), [("fr", "fr"), ("translation.fr", "translation.fr"), ("fr.en", "fr")])
def test_column_of_a_language_that_is_not_there_is_named(path: str, named: str) -> None:
    dataset, _, _ = SHAPES["translation"]
    with pytest.raises(ValueError, match=f"no column '{named}' for language 'fr'"):
        read_wide(dataset, {"en": "translation.en", "fr": path})


@pytest.mark.parametrize("stream", [False, True])
def test_column_with_fields_is_no_text(stream: bool) -> None:
    dataset = SHAPES["translation"][0]
    with pytest.raises(ValueError, match=r"has fields: name one of them, as translation\.en or translation\.sw"):
        read_wide(dataset.to_iterable_dataset() if stream else dataset, {"en": "translation"})


@pytest.mark.parametrize("stream", [False, True])
def test_rows_without_translations_hold_no_text(stream: bool) -> None:
    table = Dataset.from_list([{"translation": row} for row in [*_wide(), None]])
    found = read_wide(table.to_iterable_dataset() if stream else table, {"sw": "translation.sw"})
    for _ in range(2):  # it can be read again
        assert list(found["sw"]) == [*TEXTS["sw"], None]


def test_wide_table_that_is_called_after_one_language_is_told_how_to_pass_it() -> None:
    with pytest.raises(ValueError, match=r"with text_column\..*\(on the command line: --columns en=en"):
        gather({"fl": Dataset.from_list(_wide())})


def test_encoder_decoder_is_told_how_to_pass_a_table_of_translations() -> None:
    dataset, columns = SHAPES["translation"][0], {"text_column": "text", "target_column": "target"}
    with pytest.raises(ValueError, match="From a table of translations, pass") as raised:
        gather(dataset, **columns)
    rows = eval(str(raised.value).partition("pass ")[2].removesuffix("."), {"dataset": dataset})
    assert gather(rows, **columns) == {"sw": sorted(TEXTS["en"])}
    assert {row["target"] for row in rows} == {*TEXTS["sw"]}


def test_rows_of_a_stream_without_a_language_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    stream = Dataset.from_list([*ROWS, {"language": None, "text": "a"}]).to_iterable_dataset()
    with caplog.at_level(logging.WARNING, "optimum_mwanda"):
        gather(stream)
    assert "1 of 5 rows name no language" in caplog.text


@pytest.mark.parametrize("key", [1, None, ""])
def test_dict_with_a_key_that_is_no_language_is_refused(key: Any) -> None:
    with pytest.raises(TypeError, match="keys are language codes"):
        gather({key: ["a"]})
