"""Everything that `--dataset` may name."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from optimum_mwanda import MWandaConfig
from optimum_mwanda.commands import text_lines
from optimum_mwanda.commands.errors import DataError
from optimum_mwanda.commands.places import open_dataset
from optimum_mwanda.data.by_language import split_by_language
from optimum_mwanda.data.chunks import build_chunks
from optimum_mwanda.data.columns import Columns

from ..conftest import make_model
from .conftest import SMALL, Run, as_jsonl, make_texts, make_tokenizer

TEXTS = make_texts(2)
ROWS = [{"language": language, "text": text} for language, lines in TEXTS.items() for text in lines]


def zstd(content: bytes) -> bytes:
    return pyarrow.compress(content, codec="zstd", asbytes=True)


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


def rows_of(*places: Path | str, **options: Any) -> list[dict[str, str]]:
    with open_dataset([str(place) for place in places], **options) as dataset:
        return [{"language": row["language"], "text": row["text"]} for row in dataset]


@pytest.mark.parametrize("compression", COMPRESS)
def test_jsonl_also_compressed(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"my.texts.jsonl{compression}"
    path.write_bytes(COMPRESS[compression](as_jsonl(TEXTS).encode()))
    assert rows_of(path) == ROWS


@pytest.mark.parametrize("name", ["t.csv", "t.tsv.gz", "t.parquet", "t.json"])
def test_other_tables(tmp_path: Path, name: str) -> None:
    path, table = tmp_path / name, Dataset.from_list(ROWS)
    if ".parquet" in name:
        table.to_parquet(path)
    elif ".json" in name:
        table.to_json(path, lines=False)
    else:
        frame = table.to_pandas().to_csv(index=False, sep="\t" if ".tsv" in name else ",").encode()
        path.write_bytes(gzip.compress(frame) if name.endswith(".gz") else frame)
    assert rows_of(path) == ROWS


@pytest.mark.parametrize("compression", COMPRESS)
def test_text_files_are_one_language_each(tmp_path: Path, compression: str) -> None:
    paths = [tmp_path / f"{language}.txt{compression}" for language in TEXTS]
    for path, lines in zip(paths, TEXTS.values(), strict=True):
        path.write_bytes(COMPRESS[compression]("\n".join(lines).encode()))
    for places in (list(map(str, paths)), [str(tmp_path)]):
        for streaming in (False, True):
            with open_dataset(places, streaming=streaming) as dataset:
                assert {language: list(lines) for language, lines in dataset.items()} == TEXTS


def test_several_files_are_read_as_one(tmp_path: Path) -> None:
    for language, lines in TEXTS.items():
        (tmp_path / f"{language}.jsonl").write_text(as_jsonl({language: lines}))
    assert rows_of(*(tmp_path / f"{language}.jsonl" for language in TEXTS)) == ROWS


def test_folder_of_tables_has_splits(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(as_jsonl(TEXTS))
    (tmp_path / "test.jsonl").write_text(as_jsonl({"en": TEXTS["en"]}))
    assert rows_of(tmp_path) == ROWS
    assert rows_of(tmp_path, split="test") == ROWS[:2]
    assert rows_of(tmp_path, streaming=True) == ROWS
    with pytest.raises(DataError, match="train"):
        rows_of(tmp_path, split="validation")


def test_folder_of_save_to_disk(tmp_path: Path) -> None:
    table = Dataset.from_list(ROWS)
    table.save_to_disk(tmp_path / "one")
    DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(tmp_path / "two")
    assert rows_of(tmp_path / "one") == ROWS
    assert rows_of(tmp_path / "two", split="test") == ROWS[:1]
    with pytest.raises(DataError, match="train, test"):
        rows_of(tmp_path / "two", split="dev")


@pytest.mark.parametrize("missing", ["no.jsonl", "no.txt.gz", "./no", "a/b/c", "/no/where"])
def test_missing_place_is_named(missing: str) -> None:
    with pytest.raises(DataError, match=f"no file or folder '{missing}'"):
        rows_of(missing)


def test_missing_one_of_several_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(as_jsonl(TEXTS))
    with pytest.raises(DataError, match=r"b\.jsonl"):
        rows_of(tmp_path / "a.jsonl", tmp_path / "b.jsonl")


def test_files_of_several_formats_are_refused(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.txt"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match=r"a\.jsonl \(json\), b\.txt \(text\)"):
        rows_of(tmp_path / "a.jsonl", tmp_path / "b.txt")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b"{nothing"),
        ("a.jsonl.gz", b"no gzip at all"),
        ("a.jsonl.xz", lzma.compress(b"{}" * 999)[:-20]),
        ("a.jsonl.bz2", b"BZh9 broken"),
        ("a.jsonl.zst", b"broken"),
        ("a.parquet", b"PAR1"),
        ("a.txt", b"\xff\xfe\xfa"),
        ("a.docx", b"text"),
    ],
)
def test_damaged_and_unknown_files_are_data_errors(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name.partition(".")[0]):
        rows_of(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", ""), ("a.jsonl", "\n\n"), ("a.json", "[]"), ("a.csv", "text\n")]
)
def test_files_without_rows_are_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rf"^{name}: there are no rows"):
        rows_of(tmp_path / name)


def test_no_dataset_is_none() -> None:
    with open_dataset(None) as dataset:
        assert dataset is None


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.csv.gz"])
@pytest.mark.parametrize("streaming", [False, True])
def test_languages_that_look_like_missing_values_are_read(
    tmp_path: Path, folder: bool, name: str, streaming: bool
) -> None:
    rows = [{"language": language, "text": f'{language} "a'} for language in ("nan", "true", "no", "NA")]
    sep = "\t" if ".tsv" in name else ","
    content = Dataset.from_list(rows).to_pandas().to_csv(index=False, sep=sep, quoting=3 if sep == "\t" else 0)
    (tmp_path / name).write_bytes(COMPRESS[".gz" if name.endswith(".gz") else ""](content.encode()))
    assert rows_of(tmp_path if folder else tmp_path / name, streaming=streaming) == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"language,text\nsw,caf\xe9\n", "t.csv is not UTF-8 text"),
        (b'language,text\nsw,"Habari" yako\n', "t.csv: the row at line 2 has a quote"),
        (b"language;text\nsw;Habari\n", "The first line of t.csv has ';' between its fields"),
    ],
)
def test_csv_file_that_cannot_be_read_is_an_error_in_plain_words(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    for place in (tmp_path, tmp_path / "t.csv"):
        with pytest.raises(DataError, match=f"^{message}"), open_dataset([str(place)]):
            pass


def test_lines_end_where_lines_end_only(tmp_path: Path) -> None:
    (tmp_path / "sw.txt").write_bytes("\ufeffa\u2028b\x0cc\r\nd\re\n\n".encode())
    (tmp_path / "sw.train.txt").write_bytes(b"f\r")
    paths = [str(tmp_path / name) for name in ("sw.txt", "sw.train.txt")]
    for streaming in (False, True):
        with open_dataset(paths, streaming=streaming) as dataset:
            assert [*dataset["sw"]] == ["a\u2028b\x0cc", "d", "e", "", "f"]


@pytest.mark.parametrize("compression", COMPRESS)
def test_lines_of_a_large_file_are_looked_up_without_reading_it_whole(
    compression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"line {number} " + "x" * (number % 90) for number in range(5000)]
    ends = ["\r" if number % 7 == 3 else "\r\n" if number % 5 == 0 else "\n" for number in range(5000)]
    content = "".join(line + end for line, end in zip(lines, ends, strict=True)).encode()
    path = tmp_path / f"sw.txt{compression}"
    path.write_bytes(COMPRESS[compression](content))
    split, taken = text_lines._split, []
    monkeypatch.setattr(text_lines, "_split", lambda *words: taken.append(len(words[0])) or split(*words))
    with open_dataset([str(path)]) as dataset:
        found = dataset["sw"]
        assert len(found) == 5000
        assert sum(taken) == len(content)  # once, in pieces
        assert max(taken) < 1000
        taken.clear()
        assert [found[number] for number in (4999, 0, -2, 777)] == [lines[number] for number in (4999, 0, 4998, 777)]
        assert len(taken) <= 4 * 64
        assert found[60:70] == lines[60:70]
        assert [*found] == lines
        with pytest.raises(IndexError):
            found[5000]


@pytest.mark.parametrize("compression", COMPRESS)
def test_streamed_text_is_read_no_further_than_needed(
    compression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for language, word in (("sw", "moja"), ("en", "one")):
        content = f"{word} two three\n".encode() * 20_000
        (tmp_path / f"{language}.txt{compression}").write_bytes(COMPRESS[compression](content))
    split, taken = text_lines._split, []
    monkeypatch.setattr(text_lines, "_split", lambda *words: taken.append(words[0]) or split(*words))
    config = MWandaConfig(samples_per_language=2, sequence_length=8)
    with open_dataset([str(tmp_path)], streaming=True) as dataset:
        assert not taken
        chunks = build_chunks(dataset, config, make_model(), make_tokenizer())
    assert chunks.tokens == {"en": 16, "sw": 16}
    assert len(taken) < 200


def test_streamed_text_can_be_split_for_training(tmp_path: Path) -> None:
    (tmp_path / "sw.txt").write_text("moja\nmbili\n")
    with open_dataset([str(tmp_path)], streaming=True) as dataset:
        parts = split_by_language(dataset, Columns("language", "words"))
        for _ in range(2):
            assert [*parts["sw"]] == [{"words": word, "language": "sw"} for word in ("moja", "mbili")]


def test_text_that_is_not_utf_8_is_named_when_it_is_streamed(tmp_path: Path) -> None:
    (tmp_path / "sw.txt").write_bytes(b"moja\n\xff\n")
    with open_dataset([str(tmp_path)], streaming=True) as dataset:
        lines = iter(dataset["sw"])
        assert next(lines) == "moja"
        with pytest.raises(DataError, match=r"sw\.txt is not UTF-8 text"):
            next(lines)


def contents(place: Path, **options: Any) -> dict[str, list[str]]:
    with open_dataset([str(place)], **options) as dataset:
        assert isinstance(dataset, dict)
        return {
            language: [row if isinstance(row, str) else row["text"] for row in dataset[language]]
            for language in dataset
        }


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".jsonl.gz", ".txt"])
def test_files_without_a_language_column_are_named_after_their_language(
    tmp_path: Path, ending: str, streaming: bool
) -> None:
    for language, texts in TEXTS.items():
        table = Dataset.from_dict({"text": texts})
        content = "\n".join(texts) if ending == ".txt" else table.to_pandas().to_csv(index=False)
        if "jsonl" in ending:
            content = table.to_pandas().to_json(orient="records", lines=True)
        for name in (f"{language}{ending}", f"{language}.test{ending}"):
            data = content if ".test" not in name else content.replace("w", "v")
            (tmp_path / name).write_bytes(COMPRESS[".gz" if ending.endswith(".gz") else ""](data.encode()))
    found = contents(tmp_path, streaming=streaming)
    assert found == TEXTS
    held_out = contents(tmp_path, split="test", streaming=streaming)
    assert held_out == {language: [text.replace("w", "v") for text in texts] for language, texts in TEXTS.items()}


def test_folder_without_a_file_of_the_split_names_those_that_it_has(tmp_path: Path) -> None:
    (tmp_path / "sw.train.txt").write_text("a")
    assert contents(tmp_path) == {"sw": ["a"]}
    with pytest.raises(DataError, match="no file of the split 'test': name one of train"):
        contents(tmp_path, split="test")


def test_file_that_is_not_called_after_a_language_is_a_table(tmp_path: Path) -> None:
    for name in ("texts", "dev"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps({"text": "a"}))
        with open_dataset([str(path)]) as dataset:
            assert isinstance(dataset, Dataset)


def test_saved_dataset_dict_of_languages_is_a_dict(tmp_path: Path) -> None:
    DatasetDict({code: Dataset.from_dict({"text": texts}) for code, texts in TEXTS.items()}).save_to_disk(
        tmp_path / "a"
    )
    assert contents(tmp_path / "a") == TEXTS


@pytest.fixture
def configured(tmp_path: Path) -> Path:
    """A folder with a configuration per language, as repositories of the Hub have."""
    configs = []
    for code, texts in TEXTS.items():
        (tmp_path / f"part-{code}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        configs.append({"config_name": f"1.{code}", "data_files": f"part-{code}.jsonl"})
    (tmp_path / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    return tmp_path


@pytest.mark.parametrize("streaming", [False, True])
def test_configurations_are_languages(configured: Path, streaming: bool) -> None:
    named = contents(configured, config=["sw=1.sw", "en=1.en"], streaming=streaming)
    assert named == {"sw": TEXTS["sw"], "en": TEXTS["en"]}
    assert contents(configured, config=["1.sw", "1.en"]).keys() == {"1.sw", "1.en"}
    assert contents(configured, config=["sw=1.sw"]) == {"sw": TEXTS["sw"]}
    with open_dataset([str(configured)], config=["1.sw"], streaming=streaming) as dataset:
        assert [row["text"] for row in dataset] == TEXTS["sw"]


@pytest.mark.parametrize("streaming", [False, True])
def test_files_beside_a_folder_bring_other_languages(configured: Path, tmp_path: Path, streaming: bool) -> None:
    own = tmp_path / "self.csv"
    Dataset.from_dict({"language": ["self", "self"], "text": ["a", "b"]}).to_csv(own)
    places = [str(configured), str(own)]
    with open_dataset(places, config=["sw=1.sw", "en=1.en"], streaming=streaming) as dataset:
        texts = {language: [row["text"] for row in rows] for language, rows in dataset.items()}
    assert texts == {"sw": TEXTS["sw"], "en": TEXTS["en"], "self": ["a", "b"]}


def test_files_beside_a_table_with_labels_bring_other_languages(tmp_path: Path) -> None:
    labels = ClassLabel(names=["sw", "en"])
    table = Dataset.from_dict(
        {"language": [1, 0, 1], "text": ["one", "moja", "two"]},
        features=Features({"language": labels, "text": Value("string")}),
    )
    table.save_to_disk(tmp_path / "saved")
    (tmp_path / "self.jsonl").write_text(as_jsonl({"self": ["a"]}))
    with open_dataset([str(tmp_path / "saved"), str(tmp_path / "self.jsonl")]) as dataset:
        assert {language: rows["text"][:] for language, rows in dataset.items()} == {
            "en": ["one", "two"],
            "sw": ["moja"],
            "self": ["a"],
        }


def test_places_that_cannot_be_read_together_are_named(configured: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "sw.txt").write_text("moja")
    own = tmp_path / "more.jsonl"
    own.write_text(as_jsonl({"sw": ["mbili"]}))
    with pytest.raises(DataError, match=r"Both .*texts and .*more\.jsonl have texts of 'sw'"):
        rows_of(tmp_path / "texts", own)
    with pytest.raises(DataError, match="give one folder or repository, and any files beside it"):
        rows_of(tmp_path / "texts", configured, own)
    with pytest.raises(DataError, match=r"is a stream.*leave --streaming out"):
        rows_of(configured, own, config=["1.sw"], streaming=True)


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_of_a_wide_table_are_languages(tmp_path: Path, streaming: bool) -> None:
    rows = [
        {"id": 1, "translation": dict(zip(TEXTS, texts, strict=True))} for texts in zip(*TEXTS.values(), strict=True)
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {code: f"translation.{code}" for code in TEXTS}
    assert contents(tmp_path / "t.jsonl", columns=columns, streaming=streaming) == TEXTS
    with pytest.raises(DataError, match=r"no column 'translation\.xx'"):
        contents(tmp_path / "t.jsonl", columns={"xx": "translation.xx"}, streaming=streaming)
    (tmp_path / "sw.txt").write_text("a")
    with pytest.raises(DataError, match="for one table"):
        contents(tmp_path / "sw.txt", columns=columns)


def test_wide_tables_and_configurations_on_the_command_line(
    cli: Callable[..., Run], model: Path, configured: Path, tmp_path: Path
) -> None:
    path = tmp_path / "wide.csv"
    Dataset.from_dict({f"sentence_{code}": texts for code, texts in TEXTS.items()}).to_csv(path)
    columns = ("--columns", "en=sentence_en", "sw=sentence_sw")
    run = cli("calibrate", model, tmp_path / "a", "--dataset", path, *columns, "--json", *SMALL)
    assert run.json["languages"].keys() == {"en", "sw"}
    run = cli(
        *("evaluate", model, "--dataset", configured, "--dataset-config", "en=1.en", "sw=1.sw"),
        *("--streaming", "--split", "train", "--sequence-length", "16", "--json", "--quiet"),
    )
    assert [entry["language"] for entry in run.json["languages"]] == ["en", "sw"]
    run = cli("calibrate", model, tmp_path / "b", "--dataset", path, "--columns", "en=id", "en=sentence_en", *SMALL)
    assert run.code == 2
    assert "names a language twice" in run.error
    run = cli(*("calibrate", model, tmp_path / "b", "--dataset", configured), "--dataset-config", "a=1.en", "a=1.sw")
    assert run.code == 3
    assert "name a language twice" in run.error
    run = cli("calibrate", model, tmp_path / "b", "--dataset", path, "--dataset-config", "en", *SMALL)
    assert run.code == 3
    assert "Files have no configurations" in run.error
    run = cli("calibrate", model, tmp_path / "b", "--dataset", path, "--columns", "en", *SMALL)
    assert run.code == 2
    assert "such as sw=sentence_swh" in run.error
    run = cli("calibrate", model, tmp_path / "b", "--dataset", path, *SMALL)
    assert run.code == 3
    assert "--columns sentence_en=sentence_en" in run.error
