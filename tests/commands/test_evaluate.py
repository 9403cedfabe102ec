"""`evaluate`: dense reports that are used again, intervals, and the formats of its output."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Pruned, Run

Cli = Callable[..., Run]
FAST = ("--sequence-length", "16", "--quiet")


@pytest.fixture(scope="module")
def dense_report(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Path:
    path = tmp_path_factory.mktemp("reports") / "dense.json"
    assert cli("evaluate", model, "--dataset", data, "--output", path, *FAST).code == 0
    return path


def test_standard_errors_are_shown(cli: Cli, model: Path, data: Path) -> None:
    run = cli("evaluate", model, "--dataset", data, "--languages", "sw", *FAST)
    (row,) = (line for line in run.out.splitlines() if line.startswith("| sw"))
    assert row.count(" ± ") == 3


def test_dense_report_replaces_the_dense_model(
    cli: Cli, model: Path, data: Path, pruned: Pruned, dense_report: Path
) -> None:
    # The length of the windows is that of the report.
    again = cli("evaluate", pruned.path, "--dataset", data, "--dense-report", dense_report, "--quiet", "--json")
    assert again.code == 0, again.err
    assert again.json == cli("evaluate", pruned.path, "--dataset", data, "--dense", model, *FAST, "--json").json


def test_dense_half_of_a_comparison_is_a_dense_report(cli: Cli, data: Path, pruned: Pruned) -> None:
    words = ("--dense-report", pruned.path / "evaluation.json", "--quiet", "--json")
    run = cli("evaluate", pruned.path, "--dataset", data, *words)
    assert run.code == 0, run.err
    assert run.json["dense"] == json.loads((pruned.path / "evaluation.json").read_text())["dense"]


def test_confidence_widens_the_intervals(cli: Cli, data: Path, pruned: Pruned, dense_report: Path) -> None:
    def width(*words: str) -> float:
        run = cli(
            "evaluate", pruned.path, "--dataset", data, "--dense-report", dense_report, "--quiet", "--json", *words
        )
        mean = run.json["pruned"]["pruned"]["change"]["log_perplexity"]["summary"]["mean"]
        return float(mean["high"] - mean["low"])

    assert 0 < width("--confidence", "0.5") < width() < width("--confidence", "0.999")


def test_tables_are_in_perplexity_and_in_bits_per_byte(
    cli: Cli, data: Path, pruned: Pruned, dense_report: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report.md"
    run = cli("evaluate", pruned.path, "--dataset", data, "--dense-report", dense_report, "--quiet", "--output", out)
    assert run.code == 0, run.err
    assert run.out == f"{out.read_text()}\nWrote {out}.\n"
    headers = [line for line in run.out.splitlines() if line.startswith("| language")]
    assert [header.split("|")[-2].strip() for header in headers] == ["×", "%"]


def test_csv_has_a_row_per_language(
    cli: Cli, model: Path, data: Path, pruned: Pruned, dense_report: Path, tmp_path: Path
) -> None:
    words = ("--dataset", data, *FAST, "--output")
    assert cli("evaluate", model, *words, tmp_path / "one.csv").code == 0
    assert cli("evaluate", pruned.path, *words, tmp_path / "two.csv", "--dense-report", dense_report).code == 0
    for name, column in (("one.csv", "bits_per_byte_standard_error"), ("two.csv", "log_perplexity_increase_high")):
        with (tmp_path / name).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["language"] for row in rows] == ["en", "fr", "sw"]
        assert all(float(row[column]) for row in rows)


def test_page_shows_languages_and_blocks(
    cli: Cli, data: Path, pruned: Pruned, dense_report: Path, tmp_path: Path
) -> None:
    page = tmp_path / "made" / "page.html"
    run = cli("evaluate", pruned.path, "--dataset", data, "--dense-report", dense_report, "--quiet", "--report", page)
    assert run.code == 0, run.err
    assert run.out.endswith(f"\nWrote {page}.\n")
    text = page.read_text(encoding="utf-8")
    assert all(f">{name}<" in text for name in ("en", "fr", "sw", "model.layers.2"))
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]


def test_page_of_one_model_without_a_record_has_no_blocks(cli: Cli, model: Path, data: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert cli("evaluate", model, "--dataset", data, *FAST, "--report", page).code == 0
    text = page.read_text(encoding="utf-8")
    assert ">sw<" in text
    assert "model.layers" not in text


def test_existing_page_is_kept(cli: Cli, model: Path, data: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("mine")
    words = ("evaluate", model, "--dataset", data, *FAST, "--report", page)
    assert cli(*words).code == 2
    assert page.read_text() == "mine"
    assert cli(*words, "--overwrite").code == 0
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_page_that_cannot_be_written_is_a_data_error_and_leaves_nothing(
    cli: Cli, model: Path, data: Path, tmp_path: Path
) -> None:
    page = tmp_path / ("x" * 250 + ".html")  # as long as a name may be, too long for the one it has while it is written
    run = cli("evaluate", model, "--dataset", data, *FAST, "--report", page)
    assert run.code == 3
    assert "File name too long" in run.error
    assert list(tmp_path.iterdir()) == []


def test_record_that_cannot_be_read_is_no_reason_not_to_evaluate(
    cli: Cli, data: Path, pruned: Pruned, dense_report: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(pruned.path, folder)
    config = json.loads((folder / "config.json").read_text())
    config["mwanda_config"]["schema"] = 99
    (folder / "config.json").write_text(json.dumps(config))
    words = ("--dense-report", dense_report, "--quiet", "--json", "--report", tmp_path / "page.html")
    run = cli("evaluate", folder, "--dataset", data, *words)
    assert run.code == 0
    assert run.json["seen"] is None
    assert "has the schema 99" in run.error
    assert "model.layers" not in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sequence-length", "20"], "different text or windows in 'en'"),
        (["--tokens-per-language", "40"], "different text or windows in 'en'"),
        (["--seed", "1"], "different text or windows in 'en'"),
        (["--languages", "sw", "yo"], "covers en, fr, sw, not yo"),
    ],
)
def test_dense_report_on_other_text_is_a_data_error(
    cli: Cli, data: Path, pruned: Pruned, dense_report: Path, words: list[str], message: str
) -> None:
    run = cli("evaluate", pruned.path, "--dataset", data, "--dense-report", dense_report, "--quiet", *words)
    assert run.code == 3
    assert message in run.error


def test_what_a_dense_report_covers_is_evaluated(
    cli: Cli, model: Path, data: Path, pruned: Pruned, tmp_path: Path
) -> None:
    path = tmp_path / "dense.json"
    few = ("--languages", "en", "sw", "--tokens-per-language", "40", "--seed", "2", "--bos", "none")
    assert cli("evaluate", model, "--dataset", data, "--output", path, *few, *FAST).code == 0
    words = ("evaluate", pruned.path, "--dataset", data, "--quiet", "--json")
    run = cli(*words, "--dense-report", path)
    assert run.code == 0, run.err
    assert run.json["dense"]["bos"] == "none"
    assert run.json == cli(*words, "--dense", model, *few, "--sequence-length", "16").json
    part = cli(*words, "--dense-report", path, "--languages", "sw")
    assert part.code == 0, part.err
    assert [each["language"] for each in part.json["dense"]["languages"]] == ["sw"]


@pytest.mark.parametrize("words", [["no-such-model"], ["MODEL", "--dense", "no-such-model"]])
def test_model_that_is_not_there_shows_before_anything_is_read(cli: Cli, model: Path, words: list[str]) -> None:
    run = cli("evaluate", *(model if word == "MODEL" else word for word in words), "--dataset", "nor-this.jsonl", *FAST)
    assert run.code == 4
    assert "'no-such-model' cannot be loaded" in run.error


def test_two_outputs_need_two_files(cli: Cli, model: Path, data: Path, tmp_path: Path) -> None:
    words = ("--output", tmp_path / "one.json", "--report", tmp_path / "x" / ".." / "one.json")
    run = cli("evaluate", model, "--dataset", data, *words, *FAST)
    assert run.code == 2
    assert "--output and --report both name" in run.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"dense": 3}', None])
def test_dense_report_that_is_none_is_a_data_error(
    cli: Cli, model: Path, data: Path, tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    run = cli("evaluate", model, "--dataset", data, "--dense-report", path, "--quiet")
    assert run.code == 3
    assert "report.json" in run.error


@pytest.mark.parametrize("confidence", ["0", "1", "95", "nan"])
def test_impossible_confidence_is_a_usage_error(cli: Cli, model: Path, data: Path, confidence: str) -> None:
    run = cli("evaluate", model, "--dataset", data, "--quiet", "--confidence", confidence)
    assert run.code == 2
    assert f"--confidence {float(confidence)}" in run.error


def test_dense_model_and_dense_report_exclude_each_other(cli: Cli, model: Path, data: Path, dense_report: Path) -> None:
    run = cli("evaluate", model, "--dataset", data, "--dense", model, "--dense-report", dense_report)
    assert run.code == 2
    assert "not allowed with" in run.err
