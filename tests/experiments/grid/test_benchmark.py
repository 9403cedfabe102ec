"""`benchmarks/quality.py` runs as its help says."""

import os
import shutil
import subprocess
from pathlib import Path

from optimum_mwanda.experiments.grid.runs import read_results
from tests.conftest import SAMPLE_DATA, SAMPLE_MODEL
from tests.forked import python

ROOT = Path(__file__).parents[3]


def test_parts_write_results_tables_and_pictures(tmp_path: Path) -> None:
    words = [
        "--model",
        SAMPLE_MODEL,
        "--calibration",
        SAMPLE_DATA / "calibration.jsonl",
        "--tune",
        "--output",
        tmp_path,
    ]
    words += ["--parts", "forms", "--methods", "wanda", "--sparsities", "0.5", "--seeds", "0", "--seen", "en", "zh"]
    words += ["--samples", "2", "--sequence-length", "32", "--test-tokens", "64"]
    command = [python(), ROOT / "benchmarks" / "quality.py", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path)}
    subprocess.run(list(map(str, command)), check=True, capture_output=True, env=environment)
    copied = shutil.copytree(tmp_path, tmp_path.parent / "other", ignore=shutil.ignore_patterns("cache"))
    joint = ["--joint", tmp_path, copied, "--tune", "--parts", "forms", "--output", tmp_path.parent]
    subprocess.run([*map(str, [*command[:2], *joint])], check=True, capture_output=True, env=environment)
    assert (tmp_path.parent / "tune-forms.md").read_text().count("### 50 %, calibration: multilingual") == 1
    results = read_results(tmp_path / "tune-forms.jsonl")
    assert results is not None
    assert [(run.name, run.point, run.seen) for run in results.runs.values()] == [("wanda", "50 %", ("en", "zh"))]
    assert "### 50 %" in (tmp_path / "tune-forms.md").read_text()
    assert (tmp_path / "tune-forms" / "languages-multilingual-50.svg").is_file()
