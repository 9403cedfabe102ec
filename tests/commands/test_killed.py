"""Commands that try many settings go on after `kill -9`, and find what they find without it."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ..forked import python
from .conftest import ROOT, environment


@pytest.fixture(scope="module")
def folder(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("killed")
    shutil.copytree(model, place / "model")
    shutil.copy(data, place / "texts.jsonl")
    words = [python(), "-m", "tests.commands.killed", str(place)]
    variables = environment(HF_DATASETS_CACHE=str(place / "datasets"))
    done = subprocess.run(words, cwd=ROOT, env=variables, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return place


def untimed(results: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line["about"].pop("pruning_seconds", None)
    return lines


def test_each_was_killed_and_used_what_was_there(folder: Path) -> None:
    for name, (whole, *killed, last) in json.loads((folder / "took.json").read_text()).items():
        assert killed == [0] * 5, name
        assert 0 < last < whole, name


def test_a_comparison_that_was_killed_has_the_results_of_one_that_was_not(folder: Path) -> None:
    whole, again = (untimed(folder / f"compare-{each}" / "runs.jsonl") for each in ("whole", "again"))
    assert len(whole) == 7
    assert again == whole


def test_a_search_that_was_killed_finds_the_same_model(folder: Path) -> None:
    whole, again = (folder / f"search-{each}" for each in ("whole", "again"))
    assert (again / "trials.json").read_bytes() == (whole / "trials.json").read_bytes()
    names = [path.name for path in (whole / "pruned").iterdir()]
    assert sorted(path.name for path in (again / "pruned").iterdir()) == sorted(names)
    for name in names:
        assert (again / "pruned" / name).read_bytes() == (whole / "pruned" / name).read_bytes(), name
    assert sorted(path.name for path in again.iterdir()) == ["pruned", "trials.json"]


def test_a_plan_that_was_searched_and_killed_is_the_same(folder: Path) -> None:
    whole, again = (folder / f"allocate-{each}" for each in ("whole", "again"))
    assert (again / "plan.json").read_bytes() == (whole / "plan.json").read_bytes()
    assert [path.name for path in again.iterdir()] == ["plan.json"]
