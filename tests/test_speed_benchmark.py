"""The benchmark of speed, in small: what it writes, and what it says of an earlier run."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import BENCHMARKS, load_benchmark

WORDS = [
    *("--shapes", "64", "mixture-64", "--layers", "1", "--languages", "2", "--sequence-length", "16"),
    *("--vocabulary", "64", "--rounds", "1", "--quick", "--threads", "1", "--widths", "32", "48"),
]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return load_benchmark("speed")


def test_every_step_is_measured_and_compared_with_an_earlier_run(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "speed.json"
    monkeypatch.setattr(sys, "argv", ["speed.py", *WORDS, "--json", str(file)])
    benchmark.main()
    found = json.loads(file.read_text())
    assert found["64"]["bare forward"] == 1
    # Three inputs of 64 channels and one of 176, with sums of 8 bytes for two languages. Four matrices of 64 x 64, as
    # attention has one head, and three of 64 x 176, with 4 bytes a weight.
    assert found["64"]["memory of statistics, of the weights"] == pytest.approx(
        (3 * 64 + 176) * 8 * 2 / ((4 * 64 * 64 + 3 * 64 * 176) * 4)
    )
    assert {"calibrate", "evaluate", "prune, sequential"} <= found["64"].keys() & found["mixture-64"].keys()
    assert {"swap at width 48", "alps, power of the width"} <= found["matrices"].keys()
    assert benchmark.compare(found, file, 1.5) == []
    found["64"]["calibrate"] = 1.4 * found["64"]["calibrate"] + 0.2
    assert len(benchmark.compare(found, file, 1.1)) == 1
    assert benchmark.compare({"new": {"step": 9.0}}, file, 1.5) == []


def test_some_steps_are_measured_beside_what_they_are_compared_with(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "speed.json"
    monkeypatch.setattr(sys, "argv", ["speed.py", *WORDS, "--only", "evaluate", "Gram", "--json", str(file)])
    benchmark.main()
    found = json.loads(file.read_text())
    assert found.keys() == {"64", "mixture-64"}
    steps = ["bare forward", "forward with logits", "evaluate", "Gram matrices, with the forward"]
    assert [*found["64"]] == [*steps, "memory of statistics, of the weights"]


def test_whole_jobs_of_peers_end_in_medians_as_multiples_of_ours(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = {"ours": iter([2, 9, 4, 9, 3, 9]), "theirs": iter([8, 9, 12, 9, 10, 9])}

    def run(python: str, _: list[str]) -> dict[str, float]:
        return {"seconds": next(seconds[python]), "forward": 2, "peak": 1e6 * len(python), "sparsity": 0.5}

    monkeypatch.setattr(benchmark.peers, "run", run)
    benchmark.peers._print_whole_jobs({"ours": "ours", "llm-compressor": "theirs"}, [], 3)
    lines = capsys.readouterr().out.splitlines()
    assert "| 2 | llm-compressor | wanda | 6.00 | 6 | 0.500 |" in lines
    assert "| wanda | ours | 1.50 (1.00 to 2.00) | 1.00 | 1.00 |" in lines
    assert "| wanda | llm-compressor | 5.00 (4.00 to 6.00) | 3.33 | 1.50 |" in lines


def test_a_power_is_fitted(benchmark: ModuleType) -> None:
    assert benchmark.power_of([2, 4, 10], [3.0 * size**2.5 for size in (2, 4, 10)]) == pytest.approx(2.5)


def test_the_baseline_is_of_what_the_check_measures(benchmark: ModuleType) -> None:
    known = json.loads((BENCHMARKS / "speed_baseline.json").read_text())
    words = next(line for line in (BENCHMARKS.parent / "Makefile").read_text().splitlines() if line.startswith("BENCH"))
    assert all(shape in words.split() for shape in known.keys() - {"matrices", "starts"})
    assert all(value > 0 for values in known.values() for value in values.values())
