"""The benchmark for a GPU runs on the CPU with a tiny model, and a part that fails does not lose the others."""

import json
import os
import signal
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import load_benchmark
from tests.forked import python

ROOT = Path(__file__).parents[1]
SIZES: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "layers": 2,
    "hidden": 64,
    "intermediate": 96,
    "heads": 4,
    "kv-heads": 2,
    "vocabulary": 99,
    "languages": 3,
    "samples": 2,
    "sequence-length": 16,
    "batch-size": 2,
    "batches": 2,
}
TINY = [f"--{name}={value}" for name, value in SIZES.items()]
PRUNE = ("calibrate", "allocate", "apply")
METHODS = ("swap", "swap, 2:4,", "obs", "sparsegpt", "sparsegpt, 2:4,", "alps")
ONE_BLOCK = ("make one block", *(f"{method} on one block" for method in METHODS))
PARTS = ("make the model", "bare forward", *PRUNE, "prune from host memory", *ONE_BLOCK, "steps", "2:4")


@pytest.fixture
def benchmark() -> ModuleType:
    return load_benchmark("gpu")


def run(benchmark: ModuleType, output: Path, *words: str) -> dict[str, Any]:
    benchmark.main([*TINY, "--output", str(output), *words])
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    found: dict[str, Any] = json.loads(output.read_text())
    assert tuple(found["parts"]) == PARTS
    return found


def test_all_parts_run_and_what_no_cpu_has_is_recorded_as_an_error(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    environment = {**os.environ, "PYTHON": python(), "PYTHONPATH": str(ROOT)}
    words = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), *TINY, "--output", str(output)]
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    parts = found["parts"]
    assert tuple(parts) == PARTS
    assert "Error" in parts.pop("2:4")["error"]  # sparse kernels are for GPUs
    assert [name for name, part in parts.items() if "seconds" not in part] == []
    assert parts["bare forward"]["tokens"] == 3 * 2 * 16
    assert parts["apply"]["sparsity"] == pytest.approx(0.5, abs=0.01)
    summary = found["summary"]
    assert summary["default prune, seconds"] == pytest.approx(sum(parts[name]["seconds"] for name in PRUNE))
    assert summary["calibration, in bare forwards"] > 0
    assert found["device"] == "cpu"


def test_a_part_that_fails_is_recorded_and_the_others_run(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(benchmark.Bench, "calibrate", fail)
    found = run(benchmark, tmp_path / "gpu.json")
    assert found["parts"]["calibrate"] == {"error": "RuntimeError: out of memory"}
    assert "error" in found["parts"]["apply"]  # it needs statistics
    assert "seconds" in found["parts"]["alps on one block"]
    assert found["summary"] == {"calibration, in bare forwards": None, "default prune, seconds": None}


def test_parts_without_time_are_skipped_and_one_that_takes_too_long_is_ended(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_too_long(bench: Any) -> None:
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= bench.args.budget
        bench.args.budget = 0
        signal.raise_signal(signal.SIGALRM)

    monkeypatch.setattr(benchmark.Bench, "forward", take_too_long)
    found = run(benchmark, tmp_path / "gpu.json")
    assert found["parts"]["bare forward"] == {"error": "TimeoutError: the time budget was used up"}
    assert {tuple(part) for part in [*found["parts"].values()][2:]} == {("skipped",)}
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
