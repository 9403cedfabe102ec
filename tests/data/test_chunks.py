import logging
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from optimum_mwanda import MWandaConfig
from optimum_mwanda.data.chunks import CalibrationChunks, build_chunks
from optimum_mwanda.data.language_coverage import LanguageCoverage, coverage_table
from tests.conftest import make_rows

Row = dict[str, Any]
LENGTH = 8
CODES = "en zh-Hant eng_Latn"


def pack(dataset: Any, model: PreTrainedModel, tokenizer: Any = None, **settings: Any) -> CalibrationChunks:
    return build_chunks(
        dataset, MWandaConfig(**{"sequence_length": LENGTH, "samples_per_language": 4} | settings), model, tokenizer
    )


def constant_rows(**tokens: int) -> list[Row]:
    """One row per language, all of one id, with so many tokens."""
    return [{"language": language, "input_ids": [9] * count} for language, count in tokens.items()]


def packed(chunks: CalibrationChunks) -> dict[str, torch.Tensor]:
    """Language to its token ids, `(chunks, LENGTH)`; they are all that the model gets."""
    parts = {language: part for language, (part,) in chunks.chunks.items()}
    assert all(part.keys() == {"input_ids"} for part in parts.values())
    return {language: part["input_ids"] for language, part in parts.items()}


def contents(chunks: CalibrationChunks) -> dict[str, list[list[int]]]:
    """Chunks without their order."""
    return {language: sorted(ids.tolist()) for language, ids in packed(chunks).items()}


def counted_stream(rows: list[Row], read: list[Row]) -> IterableDataset:
    def generate() -> Iterator[Row]:
        for row in rows:
            read.append(row)
            yield row

    return IterableDataset.from_generator(generate)


def by_language(rows: list[Row]) -> dict[str, list[Row]]:
    return {language: [row for row in rows if row["language"] == language] for language in CODES.split()}


CONTAINERS: dict[str, Callable[[list[Row]], Any]] = {
    "list": list,
    "tuple": tuple,
    "dict": by_language,
    "dict of datasets": lambda rows: {code: Dataset.from_list(part) for code, part in by_language(rows).items()},
    "Dataset": Dataset.from_list,
    "Dataset with indices": lambda rows: Dataset.from_list([*rows, rows[0]]).select(range(len(rows))),
    "torch Dataset": lambda rows: Dataset.from_list(rows).with_format("torch"),
    "IterableDataset": lambda rows: Dataset.from_list(rows).to_iterable_dataset(),
    "torch IterableDataset": lambda rows: Dataset.from_list(rows).to_iterable_dataset().with_format("torch"),
    "generator stream": lambda rows: counted_stream(rows, []),
    "ClassLabel Dataset": lambda rows: Dataset.from_list(rows).class_encode_column("language"),
    "ClassLabel stream": lambda rows: Dataset.from_list(rows).class_encode_column("language").to_iterable_dataset(),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_gives_the_same_chunks(model: PreTrainedModel, container: str) -> None:
    rows = make_rows(CODES, length=LENGTH)
    chunks = pack(CONTAINERS[container](rows), model)
    assert contents(chunks) == {
        code: sorted(row["input_ids"] for row in rows if row["language"] == code) for code in sorted(CODES.split())
    }
    assert packed(chunks)["en"].shape == (4, LENGTH)
    assert packed(chunks)["en"].dtype == torch.int64


@pytest.mark.parametrize("container", ["list", "Dataset", "IterableDataset", "ClassLabel stream"])
def test_padding_that_the_attention_mask_marks_is_dropped(model: PreTrainedModel, container: str) -> None:
    rows = [
        row | {"input_ids": [0, *row["input_ids"], 0], "attention_mask": [0, *[1] * LENGTH, 0]}
        for row in make_rows(CODES, length=LENGTH)
    ]
    assert contents(pack(CONTAINERS[container](rows), model)) == contents(pack(make_rows(CODES, length=LENGTH), model))


def test_texts_are_tokenised_and_packed_end_to_end(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    texts = {"en": ["the cat sat"] * 6, "fr": ["le chat est sur le lit"] * 6}
    chunks = pack(texts, model, tokenizer, bos="none")
    for language, (text, *_) in texts.items():
        ids = tokenizer(text)["input_ids"] * 6
        found = packed(chunks)[language].flatten().tolist()
        assert found == ids[: len(found)]
        assert len(found) == min(4, len(ids) // LENGTH) * LENGTH


def test_columns_may_have_any_name(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{"lang": "sw", "sentence": "paka analala juu ya kitanda", "text": 5}] * 4
    for dataset in (rows, Dataset.from_list(rows), counted_stream(rows, [])):
        chunks = pack(dataset, model, tokenizer, language_column="lang", text_column="sentence")
        assert list(chunks.chunks) == ["sw"]


def test_every_language_gets_the_same_number_of_tokens(model: PreTrainedModel) -> None:
    chunks = pack(constant_rows(de=500, en=4 * LENGTH, sw=33), model)
    assert {language: ids.shape for language, ids in packed(chunks).items()} == dict.fromkeys(
        ("de", "en", "sw"), (4, LENGTH)
    )


@pytest.mark.parametrize("container", ["list", "stream", "reservoir"])
def test_single_languages_may_have_a_number_of_chunks_of_their_own(model: PreTrainedModel, container: str) -> None:
    rows = make_rows(CODES, rows=40, length=2 * LENGTH)
    settings: dict[str, Any] = {"samples_per_language": {"en": 40, "eng_Latn": 3}, "languages": CODES.split()}
    dataset = rows if container == "list" else counted_stream(rows, [])
    if container == "reservoir":
        settings["reservoir"] = 100
    chunks = pack(dataset, model, **settings)
    assert {name: len(ids) for name, ids in packed(chunks).items()} == {"en": 40, "eng_Latn": 3, "zh-Hant": 32}
    for name, count in (("en", 40), ("eng_Latn", 3), ("zh-Hant", 32)):
        alone = pack(dataset, model, **{**settings, "samples_per_language": count, "languages": [name]})
        assert torch.equal(packed(alone)[name], packed(chunks)[name])


def test_number_of_chunks_for_a_language_that_is_not_there_is_refused(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="samples_per_language names 'slef', but calibration has: en, fr, sw"):
        pack(make_rows(), model, samples_per_language={"slef": 4})


def test_short_rows_are_packed_and_an_incomplete_chunk_is_left_out(model: PreTrainedModel) -> None:
    rows = [{"language": "en", "input_ids": [index] * 3} for index in range(7)]
    ids = packed(pack(rows, model))["en"]
    assert ids.shape == (2, LENGTH)
    assert [len(list(run)) for _, run in groupby(ids.flatten().tolist())] == [3, 3, 3, 3, 3, 1]


def test_coverage_counts_what_was_read(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    texts = {"sw": ["paka analala juu ya kitanda kitanda"] * 2 + [None, ""], "en": [" ", "the"]}
    chunks = pack(texts, model, tokenizer)
    length = len(tokenizer(texts["sw"][0])["input_ids"])
    count = 2 * length // LENGTH
    assert count >= 1
    english, swahili = chunks.coverage
    assert (english.language, english.rows, english.tokens, english.chunks, english.empty) == ("en", 1, 0, 0, 1)
    assert (swahili.language, swahili.rows, swahili.empty) == ("sw", 2, 2)
    assert (swahili.tokens, swahili.chunks) == (count * LENGTH, count)
    assert coverage_table(chunks.coverage).splitlines() == [
        "| language | rows | tokens | chunks | empty rows |",
        "| -------- | ---: | -----: | -----: | ---------: |",
        "| en       |    1 |      0 |      0 |          1 |",
        f"| sw       |    2 | {count * LENGTH:>6} | {count:>6} |          2 |",
    ]


def test_only_rows_that_are_needed_are_read(model: PreTrainedModel) -> None:
    (coverage,) = pack(make_rows("en", rows=50, length=LENGTH), model).coverage
    assert (coverage.rows, coverage.chunks) == (4, 4)


def test_seed_chooses_the_rows(model: PreTrainedModel) -> None:
    dataset = Dataset.from_list(make_rows("en sw", rows=40, length=LENGTH))
    first, again, other = (pack(dataset, model, seed=seed) for seed in (0, 0, 1))
    assert contents(first) == contents(again)
    assert first.fingerprints == again.fingerprints != other.fingerprints
    assert all(contents(first)[language] != contents(other)[language] for language in ("en", "sw"))


def test_languages_read_the_same_rows_of_a_parallel_text(model: PreTrainedModel) -> None:
    rows = [{"language": code, "input_ids": [k] * LENGTH} for code in ("en", "sw") for k in range(40)]
    ids = packed(pack(rows, model))
    assert torch.equal(ids["en"], ids["sw"])


def test_order_of_the_languages_does_not_matter(model: PreTrainedModel) -> None:
    groups = by_language(make_rows(CODES, rows=20, length=LENGTH))
    forwards = pack(groups, model)
    backwards = pack(dict(reversed(groups.items())), model)
    assert list(forwards.chunks) == list(backwards.chunks) == sorted(groups)
    assert forwards.fingerprints == backwards.fingerprints
    assert forwards.fingerprints == pack(groups, model, languages=CODES.split()[::-1]).fingerprints


@pytest.mark.parametrize("container", [list, Dataset.from_list])
def test_long_document_does_not_crowd_out_the_others(
    model: PreTrainedModel, container: Callable[[list[Row]], Any]
) -> None:
    rows = [{"language": "en", "input_ids": [index] * (1000 if index == 0 else LENGTH)} for index in range(4)]
    for seed in range(4):
        ids = packed(pack(container(rows), model, seed=seed))["en"]
        assert ids.flatten().bincount().tolist() == [LENGTH] * 4


def test_long_document_fills_in_where_there_is_nothing_else(model: PreTrainedModel) -> None:
    rows = [{"language": "en", "input_ids": [index] * (1000 if index == 0 else LENGTH)} for index in range(2)]
    assert packed(pack(rows, model))["en"].flatten().bincount().tolist() == [3 * LENGTH, LENGTH]


@pytest.mark.parametrize(("languages", "needed"), [(["en"], 11), (["en", "fr"], 12)])
def test_stream_is_read_no_further_than_the_requested_languages_need(
    model: PreTrainedModel, languages: list[str], needed: int
) -> None:
    rows = make_rows("de en fr", rows=1, length=LENGTH) * 30
    read: list[Row] = []
    chunks = pack(counted_stream(rows, read), model, languages=languages)
    assert list(chunks.chunks) == languages
    assert len(read) == needed
    assert {c.language: c.rows for c in chunks.coverage} == dict.fromkeys(languages, 4)


def test_stream_without_requested_languages_is_read_to_its_end_with_a_warning(
    model: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    read: list[Row] = []
    with caplog.at_level(logging.WARNING, "optimum_mwanda"):
        chunks = pack(counted_stream(make_rows("en sw", rows=6, length=LENGTH), read), model)
    assert list(chunks.chunks) == ["en", "sw"]
    assert len(read) == 12
    assert "languages" in caplog.text
    assert "take(n)" in caplog.text


def test_requested_languages_are_the_only_ones(model: PreTrainedModel) -> None:
    for dataset in (make_rows(length=LENGTH), Dataset.from_list(make_rows(length=LENGTH))):
        chunks = pack(dataset, model, languages=["sw", "en"])
        assert list(chunks.chunks) == ["en", "sw"]
        assert [c.language for c in chunks.coverage] == ["en", "sw"]


@pytest.mark.parametrize("stream", [False, True])
def test_language_that_is_requested_twice_is_read_once(model: PreTrainedModel, stream: bool) -> None:
    rows = make_rows("en", rows=3, length=LENGTH)
    chunks = pack(counted_stream(rows, []) if stream else rows, model, languages=["en", "en"])
    assert len(packed(chunks)["en"]) == chunks.coverage[0].rows == 3


def test_batches_cover_every_chunk_and_never_mix_languages(model: PreTrainedModel) -> None:
    chunks = pack(make_rows("en fr", length=LENGTH), model)
    batches = list(chunks.batches(3))
    assert [(language, len(inputs["input_ids"])) for language, inputs in batches] == [
        ("en", 3),
        ("en", 1),
        ("fr", 3),
        ("fr", 1),
    ]
    assert chunks.number_of_batches(3) == 4
    assert torch.equal(
        torch.cat([inputs["input_ids"] for language, inputs in batches if language == "fr"]), packed(chunks)["fr"]
    )


def test_fingerprint_depends_on_language_ids_and_shape(model: PreTrainedModel) -> None:
    rows = make_rows("en", length=LENGTH)
    variants = [
        pack(rows, model),
        pack([row | {"language": "sw"} for row in rows], model),
        pack([row | {"input_ids": [*range(5, 5 + LENGTH)]} for row in rows], model),
        pack(rows, model, sequence_length=4, samples_per_language=8),
    ]
    assert len({tuple(chunks.fingerprints.items()) for chunks in variants}) == len(variants)


# What cannot be read


@pytest.mark.parametrize("container", [list, Dataset.from_list, lambda rows: counted_stream(rows, [])])
@pytest.mark.parametrize(
    ("row", "missing", "present", "setting"),
    [
        ({"lang": "en", "text": "a"}, "language", ["lang", "text"], "language_column"),
        ({"language": "en", "content": "a"}, "text", ["language", "content"], "text_column"),
        ({"lang": "en", "input_ids": [5]}, "language", ["lang", "input_ids"], "language_column"),
    ],
)
def test_missing_column_lists_the_columns(
    model: PreTrainedModel, container: Any, row: Row, missing: str, present: list[str], setting: str
) -> None:
    with pytest.raises(ValueError, match=f"Column '{missing}' is missing") as raised:
        pack(container([row]), model)
    assert all(repr(column) in str(raised.value) for column in present)
    assert setting in str(raised.value)


def test_row_of_a_list_that_lacks_a_column_is_numbered(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="Column 'language' is missing in row 4"):
        pack([*make_rows("en", length=LENGTH), {"input_ids": [5]}], model)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("languages", [["sw"], ["en", "sw"]])
def test_requested_language_that_is_absent_is_named(model: PreTrainedModel, stream: bool, languages: list[str]) -> None:
    rows = make_rows("en eng_Latn", length=LENGTH)
    with pytest.raises(ValueError, match=r"Language 'sw' was asked for, but the dataset has:.*'en"):
        pack(counted_stream(rows, []) if stream else rows, model, languages=languages)


@pytest.mark.parametrize("container", [list, Dataset.from_list, lambda rows: counted_stream(rows, [])])
def test_requested_language_that_is_short_is_an_error(model: PreTrainedModel, container: Any) -> None:
    rows = constant_rows(en=50, sw=LENGTH - 1)
    with pytest.raises(ValueError, match=r"fewer than the 8 of one chunk \(tokens: 'sw' 7\).*Lower sequence_length"):
        pack(container(rows), model, languages=["en", "sw"])


@pytest.mark.parametrize("container", [list, Dataset.from_list, lambda rows: counted_stream(rows, [])])
def test_short_language_that_was_not_requested_is_left_out_with_a_warning(
    model: PreTrainedModel, caplog: pytest.LogCaptureFixture, container: Any
) -> None:
    with caplog.at_level(logging.WARNING, "optimum_mwanda"):
        chunks = pack(container(constant_rows(en=50, sw=LENGTH - 1)), model)
    assert list(chunks.chunks) == ["en"]
    assert "'sw' 7" in caplog.text
    assert [(c.language, c.tokens) for c in chunks.coverage] == [("en", 4 * LENGTH), ("sw", 0)]


def test_language_of_a_dict_without_texts_is_left_out_with_a_warning(
    model: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "optimum_mwanda"):
        chunks = pack({"en": [{"input_ids": [9] * 50}], "sw": []}, model)
    assert list(chunks.chunks) == ["en"]
    assert "'sw'" in caplog.text


@pytest.mark.parametrize("dataset", [constant_rows(en=7, sw=0), Dataset.from_list(constant_rows(en=7, sw=0))])
def test_data_without_a_single_chunk_say_how_many_tokens_there_are(model: PreTrainedModel, dataset: Any) -> None:
    with pytest.raises(ValueError, match=r"No language has enough tokens.*'en' 7, 'sw' 0"):
        pack(dataset, model)


@pytest.mark.parametrize(
    "dataset", [[], {}, {"en": []}, Dataset.from_dict({"language": [], "text": []}), counted_stream([], [])]
)
def test_empty_data_say_so(model: PreTrainedModel, dataset: Any) -> None:
    with pytest.raises(ValueError, match="No language has enough tokens: the dataset is empty"):
        pack(dataset, model)


def test_null_and_empty_texts_are_counted_and_reported(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"language": "en", "text": text} for text in ["the cat sat on the mat"] * 3 + [None, "", "  "]]
    for dataset in (rows, Dataset.from_list(rows), counted_stream(rows, [])):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "optimum_mwanda"):
            (coverage,) = pack(dataset, model, tokenizer, samples_per_language=100).coverage
        assert (coverage.rows, coverage.empty) == (3, 3)
        assert "3 rows with a null or empty text" in caplog.text


@pytest.mark.parametrize("stream", [False, True])
def test_rows_without_a_language_are_left_out(model: PreTrainedModel, stream: bool) -> None:
    rows = [*make_rows("en", length=LENGTH), *({"language": code, "input_ids": [9] * 50} for code in (None, ""))]
    assert list(pack(counted_stream(rows, []) if stream else rows, model).chunks) == ["en"]


@pytest.mark.parametrize(
    ("container", "labels", "shown"),
    [
        (list, ["en", 1], "row 1 holds 1"),
        (list, [["en"], "en"], "row 0 holds"),
        (list, ["en", float("nan")], "row 1 holds nan"),
        (Dataset.from_list, [0, 1], "row 0 holds 0"),
        (lambda rows: counted_stream(rows, []), [0, 1], "row 0 holds 0"),
    ],
)
def test_language_column_that_holds_no_strings_is_refused(
    model: PreTrainedModel, container: Any, labels: list[Any], shown: str
) -> None:
    rows = [{"language": label, "input_ids": [9] * 50} for label in labels]
    with pytest.raises(TypeError, match=f"Column 'language' must hold language codes as strings, but {shown}"):
        pack(container(rows), model)


def test_unlabelled_rows_of_a_class_label_column_are_left_out(model: PreTrainedModel) -> None:
    dataset = Dataset.from_list([{"language": label, "input_ids": [9] * 50} for label in (0, None, -1)])
    dataset = dataset.cast_column("language", ClassLabel(names=["en"]))
    for rows in (dataset, dataset.to_iterable_dataset()):
        chunks = pack(rows, model)
        assert {c.language: c.rows for c in chunks.coverage} == {"en": 1}


@pytest.mark.parametrize("splits", [DatasetDict, IterableDatasetDict])
def test_dataset_with_splits_names_them(model: PreTrainedModel, splits: type) -> None:
    dataset = Dataset.from_list(make_rows())
    parts = {name: dataset.to_iterable_dataset() if splits is IterableDatasetDict else dataset for name in ("a", "b")}
    with pytest.raises(ValueError, match=r"splits \('a', 'b'\): pass one of them, dataset\['a'\]"):
        pack(splits(parts), model)


@pytest.mark.parametrize("dataset", [None, "wikitext", b"text", 5, iter([]), torch.zeros(2, 8)])
def test_dataset_of_another_type_is_refused(model: PreTrainedModel, dataset: Any) -> None:
    with pytest.raises(TypeError, match=f"type {type(dataset).__name__} cannot be read: pass a datasets.Dataset"):
        pack(dataset, model)


@pytest.mark.parametrize("texts", ["the cat", b"the cat", 5, None, {"text": ["the cat"]}])
def test_value_of_a_dict_that_is_no_list_of_texts_is_refused(model: PreTrainedModel, texts: Any) -> None:
    with pytest.raises(TypeError, match=f"{type(texts).__name__} for language 'en': give a list of texts"):
        pack({"en": texts}, model)


def test_dict_of_columns_is_not_taken_for_languages(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises((TypeError, ValueError), match="columns"):
        pack({"language": ["en"] * 9, "text": ["the cat sat on the mat"] * 9}, model, tokenizer)


def test_list_of_bare_texts_is_refused(model: PreTrainedModel) -> None:
    with pytest.raises(TypeError, match="Row 0 of the list is a str: rows are dicts"):
        pack(["the cat"], model)


@pytest.mark.parametrize("wrong", [96, -1])
def test_token_ids_of_another_vocabulary_are_refused(model: PreTrainedModel, wrong: int) -> None:
    with pytest.raises(ValueError, match=f"Token id {wrong} of language 'en'"):
        pack([{"language": "en", "input_ids": [wrong] * 50}], model)


def test_sequence_longer_than_the_positions_of_the_model_is_refused(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="sequence_length=65 exceeds the model's 64 positions"):
        pack(make_rows(), model, sequence_length=65)


def test_text_without_a_tokenizer_asks_for_one(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="pass tokenizer="):
        pack({"en": ["the cat"]}, model)


def test_coverage_says_how_many_tokens_are_unknown(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    texts = {"el": ["the ωωω cat ωωω"] * 8, "en": ["the cat sat on the mat"] * 8}
    with caplog.at_level(logging.WARNING, "optimum_mwanda"):
        chunks = pack(texts, model, tokenizer)
    greek, english = chunks.coverage
    assert greek.unknown == int((packed(chunks)["el"] == tokenizer.unk_token_id).sum()) > 0
    assert english.unknown == english.unknown_share == 0
    share = f"{100 * greek.unknown / greek.tokens:.1f} %"
    header, _, *lines = coverage_table(chunks.coverage).splitlines()
    assert [line.split("|")[-2].strip() for line in (header, *lines)] == ["unknown", share, "0.0 %"]
    assert "tokens of language 'el' are unknown to the tokenizer: it is hardly calibrated on" in caplog.text
    assert "'en'" not in caplog.text
    part = chunks.first({"el": 1, "en": 2})
    assert part.tokens == {entry.language: entry.tokens for entry in part.coverage}
    assert [entry.chunks for entry in part.coverage] == [1, 2]
    unknown = int((packed(part)["el"] == tokenizer.unk_token_id).sum())
    assert [entry.unknown for entry in part.coverage] == [unknown, 0]
    assert unknown < greek.unknown
    (untold,) = pack(constant_rows(en=50), model).coverage
    assert untold.unknown is untold.unknown_share is None


def test_of_very_many_languages_those_with_the_fewest_tokens_are_shown() -> None:
    coverage = [LanguageCoverage(f"l{number:03}", 1, 1000 - number, 1) for number in range(100)]
    table, _, rest = coverage_table(coverage).partition("\n\n")
    assert [line.split()[1] for line in table.splitlines()[2:]] == [f"l{number:03}" for number in range(40, 100)]
    assert rest == "40 more languages have 961 tokens or more each, 39,220 in all."
