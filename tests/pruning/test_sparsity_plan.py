import json
import textwrap
from pathlib import Path

import pytest
from torch import nn

from optimum_mwanda import SparsityPlan
from optimum_mwanda.modeling.weights import PrunableWeight
from optimum_mwanda.pruning.sparsity_plan import BlockPlan

PLAN = SparsityPlan(0.5, "owl", (BlockPlan("layers.0", 3000, 1.25, 0.55), BlockPlan("layers.1", 1000, 2.5, 0.35)))


def test_a_plan_prints_as_a_table() -> None:
    assert str(PLAN) == textwrap.dedent(
        """\
        | block    | parameters | importance | sparsity |
        | -------- | ---------: | ---------: | -------: |
        | layers.0 |      3,000 |     1.2500 |   0.5500 |
        | layers.1 |      1,000 |     2.5000 |   0.3500 |
        owl allocation, target 0.5000, planned 0.5000"""
    )


def test_a_plan_without_importances_leaves_their_column_empty() -> None:
    assert "|      3,000 |            |   0.5000 |" in str(
        SparsityPlan(0.5, "uniform", (BlockPlan("layers.0", 3000, None, 0.5),))
    )


def test_replacing_sparsities_changes_those_blocks_and_the_mean_alone() -> None:
    changed = PLAN.replace({"layers.1": 0.75})
    assert (changed["layers.0"], changed["layers.1"]) == (0.55, 0.75)
    assert changed.planned == pytest.approx(0.6)  # (3 · 0.55 + 0.75)/4
    assert (changed.target, changed.blocks[1].importance) == (0.5, 2.5)
    assert PLAN["layers.1"] == 0.35


@pytest.mark.parametrize("sparsity", [-0.01, 1.01, float("nan")])
def test_a_replaced_sparsity_must_be_a_share(sparsity: float) -> None:
    with pytest.raises(ValueError, match=r"'layers\.0' must lie in \[0, 1\]"):
        PLAN.replace({"layers.0": sparsity})


def test_a_block_that_the_plan_does_not_know_is_refused() -> None:
    with pytest.raises(KeyError, match=r"layers\.7"):
        PLAN.replace({"layers.7": 0.5})


SEARCHED = SparsityPlan(
    0.5,
    "search",
    (
        BlockPlan("layers.0", 4000, 1.25, 0.6, {"layers.0.up": 0.5, "layers.0.down": 0.7}),
        BlockPlan("layers.1", 4000, None, 0.4),
    ),
)


def weight(name: str, block: str) -> PrunableWeight:
    return PrunableWeight(name, block, nn.Linear(2, 2))


def test_a_matrix_has_its_own_sparsity_or_that_of_its_block() -> None:
    assert SEARCHED.of(weight("layers.0.up", "layers.0")) == 0.5
    assert SEARCHED.of(weight("layers.0.down", "layers.0")) == 0.7
    assert SEARCHED.of(weight("layers.1.up", "layers.1")) == 0.4


def test_replacing_the_sparsity_of_a_block_replaces_those_of_its_matrices() -> None:
    assert SEARCHED.replace({"layers.0": 0.3}).of(weight("layers.0.up", "layers.0")) == 0.3


def test_a_plan_of_matrices_prints_how_far_they_differ() -> None:
    assert str(SEARCHED).splitlines()[2].endswith("|    0.50 to 0.70 |")


def test_a_saved_plan_is_read_back(tmp_path: Path) -> None:
    SEARCHED.save(tmp_path / "plan.json")
    assert SparsityPlan.load(tmp_path / "plan.json") == SEARCHED


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema": 9}, "its schema is 9"),
        ({"blocks": []}, "it has no block"),
        ({"blocks": [{"name": "a", "parameters": 1, "importance": None, "sparsity": 1.5, "weights": {}}]}, "must be"),
        (
            {"blocks": [{"name": "a", "parameters": 1, "importance": None, "sparsity": 0.5, "weights": {"a.b": "x"}}]},
            r"'a\.b' must be a number in \[0, 1\], and is 'x'",
        ),
        ({"blocks": [{"name": "a"}]}, "parameters"),
        (
            {"blocks": [{"name": "a", "parameters": 1, "importance": None, "sparsity": 0.1, "weights": {"a.b": 0.5}}]},
            "is not the mean of those of its matrices",
        ),
        (
            {"blocks": 2 * [{"name": "a", "parameters": 1, "importance": None, "sparsity": 0.5, "weights": {}}]},
            "'a' is there twice",
        ),
    ],
)
def test_a_file_that_is_no_plan_is_refused(changes: dict[str, object], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**SEARCHED.to_dict(), **changes}))
    with pytest.raises(ValueError, match=f"plan.json holds no plan.*{reason}"):
        SparsityPlan.load(path)


def test_a_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("sparsity: 0.5")
    with pytest.raises(ValueError, match="holds no plan"):
        SparsityPlan.load(path)
