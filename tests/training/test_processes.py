"""Masks are kept where several processes train one model."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ..forked import python

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both processes saw."""
    command = [python(), "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    place = tmp_path_factory.mktemp("processes")
    run = subprocess.run(
        [*command, "-m", "tests.training.processes", str(place)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHON_EXEC": python()},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return [json.loads((place / f"rank-{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


def test_a_trainer_keeps_masks_under_distributed_data_parallel(found: list[dict[str, Any]]) -> None:
    for rank in found:
        assert rank["ddp"]["processes"] == 2
        assert rank["ddp"]["in memory"]
        assert rank["ddp"]["saved"]
        assert len({round(sparsity, 9) for sparsity in rank["ddp"]["sparsity"]}) == 1


@pytest.mark.parametrize(("recipe", "moves"), [("rigl", True), ("lisa", False), ("gradual", True)])
def test_processes_agree_on_masks_that_move_and_blocks_in_turn(
    recipe: str, moves: bool, found: list[dict[str, Any]]
) -> None:
    first, second = (rank[recipe] for rank in found)
    assert first["processes"] == 2
    assert first["in memory"]
    assert first["saved"]
    assert first["moved"] is moves
    assert first == second


def test_lisa_is_refused_where_all_parameters_must_have_gradients(found: list[dict[str, Any]]) -> None:
    assert all("set ddp_find_unused_parameters=True" in rank["refused"] for rank in found)


def test_shared_out_matrices_are_refused_where_whole_ones_are_needed(found: list[dict[str, Any]]) -> None:
    for rank in found:
        for answer, start in zip(
            rank["fsdp"]["refused"], ("RigL compares", "LISA changes", "Pruning looks"), strict=True
        ):
            assert answer.startswith(start)


@pytest.mark.parametrize("order", ["fsdp", "early"])
def test_masks_are_kept_under_fsdp2(order: str, found: list[dict[str, Any]]) -> None:
    for rank in found:
        result = rank[order]
        assert all(result["sharded"])
        assert result["masked"] == [True] * 3
        assert result["in memory"]
        assert len({round(sparsity, 9) for sparsity in [*result["sparsity"], *rank["ddp"]["sparsity"]]}) == 1


@pytest.mark.parametrize("order", ["fsdp", "early"])
def test_fsdp2_trains_as_one_process_does(order: str, found: list[dict[str, Any]]) -> None:
    assert all(rank[order]["apart"] < 1e-3 for rank in found)
