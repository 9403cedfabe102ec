"""Tensor-parallel models, of which every process holds a part of each matrix, are pruned as whole ones."""

from typing import Any

import pytest

from .split import CASES, IN_FOUR, in_four, in_two, is_old
from .started import results

NEAR_TIES = 4
"""Most weights that may be chosen otherwise, as sums are rounded in another order; there are thousands."""
CHOICES = [(2, name) for name in (*CASES, "torch")] + [(4, name) for name in IN_FOUR]
Found = dict[int, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What two and four processes saw."""
    two, four = (tmp_path_factory.mktemp(name) for name in ("two", "four"))
    return {2: results(in_two, 2, two), 4: results(in_four, 4, four)}


def result_of(process: dict[str, Any], name: str) -> dict[str, Any]:
    if name not in process:
        assert is_old()
        pytest.skip("this version of transformers shares models out in another way")
    found: dict[str, Any] = process[name]
    return found


@pytest.mark.parametrize(("size", "name"), CHOICES)
def test_a_model_is_pruned_as_a_whole_one(size: int, name: str, found: Found) -> None:
    for process in found[size]:
        case = result_of(process, name)
        assert case["pruned"] > 1000
        assert case["differ"] <= NEAR_TIES
        assert case["apart"] < 1e-3
        assert case["record"]
        assert case["report"] < 1e-4


@pytest.mark.parametrize(("size", "name"), CHOICES)
def test_a_process_keeps_its_part_and_no_more(size: int, name: str, found: Found) -> None:
    for process in found[size]:
        case = result_of(process, name)
        assert case["parts"] > 2
        assert case["same parameters"]


@pytest.mark.parametrize(("size", "name"), [choice for choice in CHOICES if choice[1] != "torch"])
def test_what_transformers_saves_is_the_pruned_model(size: int, name: str, found: Found) -> None:
    for process in found[size]:
        case = result_of(process, name)
        assert case["saved"]
        assert case["verified"]


def test_a_failure_leaves_the_parts_as_they_were(found: Found) -> None:
    for process in found[2]:
        assert process["restored"]["said"] == "the matrix is not positive definite"
        assert process["restored"]["same"]


def test_one_way_of_sharing_out_is_enough(found: Found) -> None:
    assert all("tensor-parallel and under FSDP2 at the same time" in process["twice"] for process in found[2])
