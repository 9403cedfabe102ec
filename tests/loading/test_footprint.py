"""The memory that a plan names is what real processes take."""

import runpy
import sys
from pathlib import Path

import pytest

from optimum_mwanda import plan_pruning

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="asks the system for the peak as Linux tells it")
def test_memory_is_right_to_within_fifteen_percent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    benchmark = runpy.run_path(str(ROOT / "benchmarks" / "plan.py"))
    libraries = benchmark["measure"](tmp_path, "libraries")["peak"]
    found = {}
    for name, mode, layers in (("llama", "stream", 6), ("qwen3", "memory", 3), ("mixtral", "stream", 3)):
        place = tmp_path / name
        benchmark["make_model"](name, place / "dense", num_hidden_layers=layers)
        said = plan_pruning(place / "dense", benchmark["settings"]("default"), benchmark["rows"](), timed=False)
        own = benchmark["measure"](place, mode)["peak"] - libraries
        found[name] = getattr(said, mode).memory / own
    assert all(0.85 < ratio < 1.15 for ratio in found.values()), found
