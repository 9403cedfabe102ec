"""The benchmark of recoveries, on the sample in small: what it writes, and how it goes on after an interruption."""

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import SAMPLE_DATA, SAMPLE_MODEL, load_benchmark

WORDS = [
    *("--model", str(SAMPLE_MODEL), "--train", str(SAMPLE_DATA / "calibration.jsonl")),
    *("--calibration", str(SAMPLE_DATA / "calibration.jsonl")),
    *("--seen", "en", "ta", "--train-rows", "6", "--samples", "2", "--test-tokens", "32"),
    *("--sequence-length", "24", "--batch-size", "2", "--tokens", "144", "--methods", "wanda"),
]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load_benchmark("recovery")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    lines = (SAMPLE_DATA / "evaluation.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    test = tmp_path_factory.mktemp("text") / "test.jsonl"
    few = [line for line in lines if json.loads(line)["language"] in ("en", "ta", "vi")]
    test.write_text("".join(few), encoding="utf-8")
    return [*WORDS, "--test", str(test)]


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_every_recipe_is_measured_on_the_same_tokens(
    benchmark: ModuleType, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    benchmark.main([*words, "--output", str(tmp_path)])
    runs = read(tmp_path)
    assert [run["recipe"] for run in runs] == ["one-shot", *benchmark.RECIPES]
    assert {run["tokens"] for run in runs[1:]} == {144}
    assert all(run["sparsity"] == pytest.approx(0.6, abs=0.01) for run in runs)
    assert all(run["languages"].keys() == {"en", "ta", "vi"} for run in runs)
    assert len({run["mean"] for run in runs}) >= 7  # rigl may move nothing, and then is as masks
    table = (tmp_path / "recovery.md").read_text()
    assert table in capsys.readouterr().out
    assert re.search(r"^\| wanda +\| +gradual +\| +144 \|", table, re.MULTILINE)


def test_an_interrupted_call_keeps_what_it_has_and_goes_on(
    benchmark: ModuleType, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*words, "--recipes", "masks", "lisa", "--seeds", "0", "1", "--output", str(tmp_path)]
    trained: list[tuple[str, int]] = []

    def train(self: Any, recipe: str, pruned: Any, config: Any, before: Any, seed: int) -> tuple[Any, int]:
        if len(trained) == 2:
            trained.append(("interrupted", 0))
            raise KeyboardInterrupt
        trained.append((recipe, seed))
        return pruned, 3

    monkeypatch.setattr(benchmark.Bench, "train", train)
    with pytest.raises(KeyboardInterrupt):
        benchmark.main(words)
    assert [run["recipe"] for run in read(tmp_path)] == ["one-shot", "masks"]
    assert " masks |" in (tmp_path / "recovery.md").read_text()
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"method": "wan')  # an interruption in the middle of a line
    benchmark.main(words)
    assert trained == [
        *(("one-shot", 0), ("masks", 0), ("interrupted", 0)),
        *(("lisa", 0), ("one-shot", 1), ("masks", 1), ("lisa", 1)),
    ]
    assert [(run["recipe"], run["seed"]) for run in read(tmp_path)] == [
        each for each in trained if each[0] != "interrupted"
    ]


def test_other_settings_are_not_mixed_in(
    benchmark: ModuleType,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(benchmark.Bench, "train", lambda self, recipe, pruned, *_: (pruned, 3))
    words = [*words, "--recipes", "masks", "--output", str(tmp_path)]
    benchmark.main(words)
    before = (tmp_path / "results.jsonl").read_bytes()
    with pytest.raises(SystemExit):
        benchmark.main([*words, "--tokens", "288"])
    assert "was measured with another tokens: give another --output" in capsys.readouterr().err
    assert (tmp_path / "results.jsonl").read_bytes() == before
