"""Text that the model writes goes into a file, and from there into calibration."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from huggingface_hub import ModelCard

import optimum_mwanda.calibration.self_written
import optimum_mwanda.commands.write
from optimum_mwanda import sparsity_record
from optimum_mwanda.commands.places import open_dataset

from ..conftest import make_model
from .conftest import Run, make_tokenizer

Cli = Callable[..., Run]
FEW = ("--chunks", "3", "--sequence-length", "16", "--quiet")


@pytest.fixture(scope="module")
def written(cli: Cli, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "self.jsonl"
    run = cli("write", model, path, *FEW)
    assert (run.code, run.err) == (0, "")
    assert run.out == f"Wrote {path}: {len(path.read_text().splitlines())} texts, which fill 3 chunks.\n"
    return path


def test_every_line_is_a_row(written: Path) -> None:
    rows = [json.loads(line) for line in written.read_text(encoding="utf-8").splitlines()]
    assert all(row.keys() == {"language", "text"} and row["language"] == "self" and row["text"] for row in rows)
    assert [path.name for path in written.parent.iterdir()] == ["self.jsonl"]


def test_calibration_reads_it_beside_other_text(
    cli: Cli, model: Path, data: Path, written: Path, tmp_path: Path
) -> None:
    words = ("--dataset", data, written, "--eval-dataset", data, "--sequence-length", "16", "--quiet")
    how = ("--language-weights", "self=3", "--samples-per-language", "self=3", "sw=2")
    run = cli("prune", model, tmp_path / "out", *words, *how)
    assert run.code == 0, run.err
    record = sparsity_record(tmp_path / "out")
    assert record is not None
    assert {name: entry.weight for name, entry in record.languages.items()} == pytest.approx(
        {"en": 1 / 6, "fr": 1 / 6, "sw": 1 / 6, "self": 1 / 2}
    )
    assert (record.languages["self"].tokens, record.languages["sw"].tokens) == (48, 32)
    assert record.settings["samples_per_language"] == {"self": 3, "sw": 2}
    assert "self (written by the model itself, 48 tokens, weight 0.500)" in str(record)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.language == ["en", "fr", "sw"]
    assert "--samples-per-language self=3 sw=2" in card.text
    assert "`self` is not a language: the dense model wrote this text itself" in card.text


def test_model_goes_on_with_beginnings_and_calibration_reads_each_language(
    cli: Cli, model: Path, data: Path, tmp_path: Path
) -> None:
    beginnings = tmp_path / "beginnings"
    beginnings.mkdir()
    (beginnings / "id.txt").write_text("w70 w71\n")
    (beginnings / "tr.txt").write_text("w80 w81\n")
    places = (beginnings / "id.txt", beginnings / "tr.txt")
    run = cli("write", model, tmp_path / "own.jsonl", "--beginnings", *places, *FEW, "--json")
    assert run.code == 0, run.err
    assert run.json["languages"] == ["self-id", "self-tr"]
    assert (run.json["chunks"], run.json["beginnings"]) == (3, [str(place) for place in places])
    rows = [json.loads(line) for line in (tmp_path / "own.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {(row["language"], row["text"].split()[0]) for row in rows} == {("self-id", "w70"), ("self-tr", "w80")}
    run = cli("write", model, tmp_path / "own.jsonl", "--beginnings", *places, *FEW, "--overwrite")
    assert run.out.endswith(" texts, which fill 3 chunks in each language: self-id, self-tr.\n")
    words = ("--dataset", data, tmp_path / "own.jsonl", "--eval-dataset", data, "--sequence-length", "16", "--quiet")
    run = cli("prune", model, tmp_path / "out", *words, "--samples-per-language", "3")
    assert run.code == 0, run.err
    record = sparsity_record(tmp_path / "out")
    assert "self-id (written by the model itself, 48 tokens, weight 0.200)" in str(record)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.language == ["en", "fr", "sw"]
    assert "`self-` before a language means that the dense model wrote this text itself" in card.text
    assert "--dataset calibration.jsonl self.jsonl" in card.text


@pytest.mark.parametrize(
    ("rows", "code", "message"),
    [
        ('{"text": "w"}', 3, "Column 'language' is missing"),
        ('{"language": "id", "body": "w"}', 3, "Column 'text' is missing"),
        ('{"language": "id", "text": " "}', 3, "there is no text for language 'id'"),
        ('{"language": "id", "text": 7}', 3, "texts are strings"),
        (None, 3, "beginnings.jsonl"),
    ],
)
def test_beginnings_that_cannot_be_read_are_one_line_and_write_nothing(
    cli: Cli, model: Path, tmp_path: Path, rows: str | None, code: int, message: str
) -> None:
    place = tmp_path / "beginnings.jsonl"
    if rows is not None:
        place.write_text(rows)
    run = cli("write", model, tmp_path / "out" / "own.jsonl", "--beginnings", place, *FEW)
    assert run.code == code, run.err
    assert message in run.error
    assert not (tmp_path / "out").exists()


def test_beginnings_are_not_written_over(cli: Cli, model: Path, tmp_path: Path) -> None:
    place = tmp_path / "beginnings.jsonl"
    place.write_text('{"language": "id", "text": "w70"}')
    run = cli("write", model, place, "--beginnings", place, *FEW, "--overwrite")
    assert run.code == 2
    assert "which --beginnings names: name another path for OUT" in run.error
    assert place.read_text() == '{"language": "id", "text": "w70"}'


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_every_format_holds_every_text(ending: str, tmp_path: Path) -> None:
    texts = ["two\nlines", 'a "quote", a comma', "నమస్కారం", " nan ", "NA", "a\ttab\u2028and \ufffd", "back\\slash/"]
    rows = Dataset.from_dict({"language": ["self"] * len(texts), "text": texts})
    optimum_mwanda.commands.write._save(rows, tmp_path / f"self.{ending}")
    with open_dataset([str(tmp_path / f"self.{ending}")]) as dataset:
        assert dataset["text"][:] == texts


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_format_is_that_of_the_name(ending: str, cli: Cli, model: Path, tmp_path: Path) -> None:
    path = tmp_path / f"self.{ending}"
    assert cli("write", model, path, *FEW).code == 0
    words = ("--sequence-length", "16", "--quiet", "--json")
    run = cli("calibrate", model, tmp_path / "s.safetensors", "--dataset", path, *words)
    assert run.code == 0, run.err
    assert run.json["languages"]["self"]["chunks"] >= 3


def test_result_is_told_as_json_with_all_that_decides_it(cli: Cli, model: Path, written: Path, tmp_path: Path) -> None:
    run = cli("write", model, tmp_path / "again.jsonl", *FEW, "--json")
    assert run.json["seed"] == 0
    assert run.json["language"] == "self"
    assert run.json["texts"] == len(written.read_text().splitlines())
    assert (tmp_path / "again.jsonl").read_bytes() == written.read_bytes()
    assert cli("write", model, tmp_path / "other.jsonl", *FEW, "--seed", "1").code == 0
    assert (tmp_path / "other.jsonl").read_bytes() != written.read_bytes()


def test_columns_and_label_have_the_names_that_are_asked_for(cli: Cli, model: Path, tmp_path: Path) -> None:
    words = ("--language", "own", "--language-column", "code", "--text-column", "body")
    assert cli("write", model, tmp_path / "own.jsonl", *FEW, *words).code == 0
    row = json.loads((tmp_path / "own.jsonl").read_text().splitlines()[0])
    assert (list(row), row["code"]) == (["code", "body"], "own")


def test_existing_file_is_kept_unless_it_may_be_replaced(cli: Cli, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "self.jsonl"
    path.write_text("mine")
    assert "--overwrite" in cli("write", model, path, *FEW).error
    assert path.read_text() == "mine"
    assert cli("write", model, path, *FEW, "--overwrite").code == 0
    assert path.read_text() != "mine"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--chunks", "0"], 2, "chunks=0 is not allowed"),
        (["--temperature", "0"], 2, "temperature=0.0 is not allowed"),
        (["--text-column", "language"], 2, "one for each column"),
        (["--sequence-length", "65"], 4, "exceeds the model's 64 positions"),
        (["--tokenizer", "./none"], 4, "./none"),
        (["--output", "x"], 2, "OUT is given without a flag"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(
    cli: Cli, model: Path, tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    run = cli("write", model, tmp_path / "self.jsonl", "--quiet", *words)
    assert run.code == code, run.err
    assert message in run.error
    assert list(tmp_path.iterdir()) == []


def test_name_that_says_no_format_is_refused_before_the_work(cli: Cli, tmp_path: Path) -> None:
    run = cli("write", tmp_path / "no-model", tmp_path / "self.txt")
    assert run.code == 2
    assert "its name must end in .json, .jsonl, .ndjson, .csv, .parquet" in run.error


def test_model_without_a_tokenizer_is_a_model_error(cli: Cli, tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "model")
    run = cli("write", tmp_path / "model", tmp_path / "self.jsonl", *FEW)
    assert run.code == 4
    assert "No tokenizer could be loaded" in run.error
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    words = ("--tokenizer", tmp_path / "tokenizer")
    assert cli("write", tmp_path / "model", tmp_path / "self.jsonl", *FEW, *words).code == 0


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (OSError(28, "No space left on device"), 4)])
def test_file_appears_whole_or_not_at_all(
    error: Any, code: int, cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise error

    place = optimum_mwanda.calibration.self_written._Writer if code == 130 else optimum_mwanda.commands.write
    monkeypatch.setattr(place, "fill" if code == 130 else "_save", stop)
    assert cli("write", model, tmp_path / "made" / "self.jsonl", *FEW).code == code
    assert list(tmp_path.iterdir()) == []
