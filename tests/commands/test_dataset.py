"""Everything that `--dataset` may name."""

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from datasets import Dataset, DatasetDict

from optimum_mwanda.commands.dataset import open_dataset
from optimum_mwanda.commands.errors import DataError

from .conftest import as_jsonl, make_texts

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
    with open_dataset(list(map(str, paths))) as dataset:
        assert dataset == TEXTS
    with open_dataset([str(tmp_path)]) as dataset:
        assert dataset == TEXTS


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
