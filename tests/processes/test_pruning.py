"""Processes that share the calibration text prune as one process does."""

from typing import Any

import pytest

from .pruning import CASES, IN_FOUR, in_four, in_two
from .started import check, read, results, start

NEAR_TIES = 4
"""Most weights that may be chosen otherwise, as sums are rounded in another order; there are thousands."""
CHOICES = [(2, name) for name in CASES] + [(4, name) for name in IN_FOUR]
Found = dict[int, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What the processes saw, for two and four of them; of the four, the third is killed in the end."""
    four = tmp_path_factory.mktemp("four")
    check(start(in_four, 4, four), [0, 0, -9, 0], four)
    return {2: results(in_two, 2, tmp_path_factory.mktemp("two")), 4: read(four, (0, 1, 3))}


@pytest.mark.parametrize(("size", "name"), CHOICES)
def test_masks_are_those_of_one_process(size: int, name: str, found: Found) -> None:
    case = found[size][0][name]
    assert case["pruned"] > 1000
    assert case["differ"] <= NEAR_TIES
    assert case["apart"] < 1e-3
    assert case["hooks"] == 0


@pytest.mark.parametrize(("size", "name"), CHOICES)
def test_all_processes_end_with_the_same_weights(size: int, name: str, found: Found) -> None:
    first, *others = (process[name] for process in found[size])
    for other in others:
        assert all(other[key] == first[key] for key in ("weights", "sparsity", "coverage"))


@pytest.mark.parametrize(("size", "name"), CHOICES)
def test_text_is_dealt_evenly(size: int, name: str, found: Found) -> None:
    chunks = [process[name]["chunks"] for process in found[size]]
    assert max(chunks) - min(chunks) <= 1
    assert size == 4 or sum(chunks) == sum(found[size][0][name]["coverage"])


def test_each_row_with_a_gram_matrix_is_one_process_s_to_decide(found: Found) -> None:
    for name in ("swap", "obs", "dense obs", "sparsegpt", "stacks"):
        decided = [process[name]["decided"] for process in found[2]]
        assert sum(decided) == found[2][0][name]["rows"]
        # A solver needs whole matrices; rows are independent for the others.
        assert name == "sparsegpt" or max(decided) == min(decided)
    assert all(process["defaults"]["decided"] == process["defaults"]["rows"] for process in found[2])


def test_reports_are_those_of_one_process(found: Found) -> None:
    first, second = (process["evaluation"] for process in found[2])
    assert first["is that of one process"]
    assert first["report"] == second["report"]


def test_an_evaluation_needs_the_same_text_everywhere(found: Found) -> None:
    for process in found[2]:
        assert "differ in the held-out text" in process["evaluation"]["failure"]


def test_the_first_process_keeps_the_results_of_a_grid(found: Found) -> None:
    first, second = (process["grid"] for process in found[2])
    assert (first["runs"], first["lines"]) == (2, 3)
    assert second["lines"] == 0
    assert first["scores"] == second["scores"]


def test_some_have_no_text_or_no_tokens_for_an_expert(found: Found) -> None:
    assert [process["idle"]["languages"] for process in found[4]] == [["en"], ["fr"], []]
    assert max(process["experts"]["unreached"] for process in found[4]) > 0


def test_a_process_that_is_killed_ends_the_others(found: Found) -> None:
    for process in found[4]:
        assert process["killed"]["type"] == "LostProcessError"
        assert process["killed"]["message"].startswith("One of the other 3 processes ended early")
