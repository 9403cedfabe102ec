"""Processes that share the text prune a checkpoint on disk, and go on when one of them was killed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from packaging.version import Version

from .started import check, read, results, start
from .streaming import SETTINGS, go_on, in_all, lose_the_first
from .test_pruning import NEAR_TIES

pytestmark = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.14"), reason="older transformers cannot save offloaded mixtures"
)
Found = dict[int, tuple[Path, list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """The folder, and what the processes saw that were not killed in the end, for two and four of them."""
    seen: Found = {}
    for size in (2, 4):
        folder = tmp_path_factory.mktemp(f"streaming-{size}")
        check(start(in_all, size, folder), [0] * (size - 1) + [-9], folder)
        (folder / "store").unlink()
        seen[size] = (folder, read(folder, range(size - 1)))
    return seen


@pytest.mark.parametrize(("size", "name"), [*((2, name) for name in SETTINGS), (4, "defaults")])
def test_the_output_is_that_of_one_process(size: int, name: str, found: Found) -> None:
    case = found[size][1][0][name]
    assert case["same names"]
    assert case["pruned"] > 1000
    assert case["differ"] <= NEAR_TIES
    assert case["left"] == [f"{name}-dense", f"{name}-shared"]


@pytest.mark.parametrize("size", [2, 4])
def test_a_run_of_which_a_process_was_killed_goes_on(size: int, found: Found) -> None:
    folder, processes = found[size]
    for process in processes:
        assert process["killed"]["type"] == "LostProcessError"
    assert not (folder / "out").exists()
    seen = results(go_on, size, folder)
    assert f"processes was {size}, and is 1" in seen[0]["refused"]
    for rank, process in enumerate(seen):
        assert process["same"]
        assert process["parts"] == [f"pruned model.layers.{number}@{rank}" for number in (1, 2)]  # one part is missing


def test_a_run_of_which_the_first_process_was_killed_goes_on(found: Found) -> None:
    folder, _ = found[2]
    shutil.rmtree(folder / "out", ignore_errors=True)
    (folder / "store").unlink(missing_ok=True)
    check(start(lose_the_first, 2, folder), [-9, 0], folder)
    assert read(folder, [1])[0]["type"] == "LostProcessError"
    (folder / "store").unlink()
    assert all(process["same"] for process in results(go_on, 2, folder))
