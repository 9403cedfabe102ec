"""`optimum-cli mwanda compare`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Run

Cli = Callable[..., Run]
SMALL = ("--sequence-length", "16", "--samples-per-language", "2", "--tokens-per-language", "64", "--quiet")
POINT = ("--sparsities", "0.6")


@pytest.fixture(scope="module")
def results(cli: Cli, model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compared") / "results.jsonl"
    words = ("--dataset", data, "--eval-dataset", data, "--results", path, "--seeds", "0", "1", *POINT, *SMALL)
    run = cli("compare", model, *words)
    assert run.code == 0, run.err
    assert "| defaults |     2 |" in run.out
    return path


def test_finished_comparison_is_read_and_not_run(cli: Cli, model: Path, data: Path, results: Path) -> None:
    before = results.read_bytes()
    words = ("--dataset", data, "--eval-dataset", data, "--seeds", "0", "1", *POINT, *SMALL, "--json")
    run = cli("compare", model, "--results", results, *words)
    assert (run.code, run.json["runs"]) == (0, 6), run.err
    assert results.read_bytes() == before


def test_tables_and_pictures_need_neither_model_nor_data(cli: Cli, results: Path, tmp_path: Path) -> None:
    targets = ("--tables", tmp_path / "t.md", "--plots", tmp_path / "plots", "--report", tmp_path / "r.html")
    run = cli("compare", "--results", results, "--tables-only", *targets, "--json", "--confidence", "0.9")
    assert run.code == 0, run.err
    (section,) = run.json["sections"]
    assert (section["calibration"], section["point"]) == ("multilingual", "60 %")
    assert list(section["methods"]) == ["wanda", "ria", "defaults"]
    assert section["methods"]["wanda"]["seeds"] == [0, 1]
    assert all(Path(path).is_file() for path in run.json["written"])
    assert "90 % confidence" in (tmp_path / "t.md").read_text()
    assert (tmp_path / "plots" / "languages-multilingual-60.svg").is_file()
    assert "wanda, 60 %" in (tmp_path / "r.html").read_text()


def test_grid_of_ones_own_and_tuning(cli: Cli, model: Path, data: Path, tmp_path: Path) -> None:
    grid, path = tmp_path / "grid.json", tmp_path / "results.jsonl"
    grid.write_text(json.dumps({"mine": {"variance_weight": 2.0}, "other": {"criterion": "ria"}}))
    words = ("--grid", grid, "--methods", "mine", "--settings", '{"batch_size": 2}', "--rotate", "3", "--tune")
    run = cli("compare", model, "--dataset", data, "--results", path, *words, "--patterns", "2:4", *SMALL)
    assert run.code == 0, run.err
    assert "| sw (left out) " in run.out
    dense, *runs = map(json.loads, path.read_text().splitlines())
    assert dense["languages"] == ["en", "fr", "sw"]
    configs = [each["config"] for each in runs]
    assert [(c["variance_weight"], c["batch_size"], c["pattern"]) for c in configs] == [(2.0, 2, "2:4")] * 3
    assert [each["seen"] for each in runs] == [["fr", "sw"], ["en", "sw"], ["en", "fr"]]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "--tables-only"),
        (("MODEL", "--dataset", "DATA"), 2, "--tune"),
        (("MODEL", "--dataset", "DATA", "--tune", "--eval-dataset", "DATA"), 2, "--tune"),
        (("MODEL", "--dataset", "DATA", "--tune", "--methods", "wonda"), 2, "'wonda'"),
        (("MODEL", "--dataset", "DATA", "--tune", "--grid", "none.json"), 2, "none.json"),
        (("MODEL", "--dataset", "DATA", "--tune", "--rotate", "9"), 3, "rotate=9"),
        (("MODEL", "--dataset", "DATA", "--tune", "--languages", "xx"), 3, "'xx'"),
        (("MODEL", "--dataset", "DATA", "--tune", "--patterns", "5:7"), 4, "5:7"),
        (("MODEL", "--dataset", "DATA", "--tune", "--settings", "[]"), 2, "JSON object"),
        (("--tables-only",), 3, "no results"),
    ],
)
def test_errors(
    cli: Cli, model: Path, data: Path, tmp_path: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    places = {"MODEL": str(model), "DATA": str(data)}
    run = cli("compare", *(places.get(word, word) for word in words), "--results", tmp_path / "r.jsonl", *SMALL)
    assert run.code == code
    assert message in run.error
    assert list(tmp_path.iterdir()) == []


def test_names_that_the_results_lack(cli: Cli, results: Path) -> None:
    run = cli("compare", "--results", results, "--tables-only", "--show", "wonda")
    assert run.code == 2
    assert "wanda, ria, defaults" in run.error


def test_results_on_another_text_are_a_data_error(
    cli: Cli, model: Path, data: Path, results: Path, tmp_path: Path
) -> None:
    other = tmp_path / "texts.jsonl"
    other.write_text(data.read_text().replace("w5", "w6"))
    words = ("--dataset", data, "--eval-dataset", other, "--results", results, *POINT, *SMALL)
    run = cli("compare", model, *words)
    assert run.code == 3
    assert "another file" in run.error


def test_every_flag_has_help_with_its_default(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    flags = cli("compare", "--help").out.partition("options:")[2].split("\n  --")[1:]
    assert len(flags) > 20
    for line in flags:
        assert "(default: " in line or "(required)" in line, line


@pytest.mark.parametrize(("flag", "name"), [("--tables", "t.md"), ("--plots", "plots"), ("--report", "r.html")])
def test_tables_and_pictures_are_replaced_only_when_asked(
    cli: Cli, results: Path, tmp_path: Path, flag: str, name: str
) -> None:
    target = tmp_path / name
    mine = target / "mine.txt" if flag == "--plots" else target
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    words = ("compare", "--results", results, "--tables-only", flag, target, "--quiet")
    run = cli(*words)
    assert (run.code, mine.read_text()) == (2, "mine")
    assert "--overwrite" in run.error
    assert cli(*words, "--overwrite").code == 0
    assert not mine.exists() or mine.read_text() != "mine"
