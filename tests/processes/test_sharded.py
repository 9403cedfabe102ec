"""Models of which every process holds a part (FSDP2) are pruned as whole ones, or refused."""

from typing import Any

import pytest

from .sharded import in_two
from .started import results


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return results(in_two, 2, tmp_path_factory.mktemp("sharded"))


@pytest.mark.parametrize("name", ["defaults", "ria", "magnitude"])
def test_a_model_under_fsdp2_is_pruned_as_a_whole_one(name: str, found: list[dict[str, Any]]) -> None:
    for process in found:
        result = process[name]
        assert result["differ"] == 0
        assert result["record"]
        assert result["verified"]
        assert result["report"] < 1e-6


@pytest.mark.parametrize("name", ["defaults", "ria", "magnitude"])
def test_a_process_keeps_its_part_and_no_more(name: str, found: list[dict[str, Any]]) -> None:
    for process in found:
        assert process[name]["sharded"]
        assert process[name]["parts"]
        assert process[name]["same parameters"]


def test_zeros_are_counted_where_they_are(found: list[dict[str, Any]]) -> None:
    for process in found:
        counted = process["counted"]
        assert set(counted["zeros"].values()) == {counted["expected"]}
        assert counted["record"]
        assert {*counted["sizes"]} == {1}  # what is gathered are counts


def test_a_failure_leaves_the_parts_as_they_were(found: list[dict[str, Any]]) -> None:
    for process in found:
        assert "differ in which weights they prune" in process["restored"]["said"]
        assert process["restored"]["same"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blockwise", "which FSDP2 does not allow: set calibration='dense'"),
        ("experts", "has fused experts of which a process holds only some"),
    ],
)
def test_what_cannot_work_is_refused(name: str, message: str, found: list[dict[str, Any]]) -> None:
    assert all(message in process[name] for process in found)


def test_a_tensor_parallel_model_is_evaluated_on_the_same_text_everywhere(found: list[dict[str, Any]]) -> None:
    assert all(process["apart"] < 1e-6 for process in found)
