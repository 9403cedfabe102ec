"""Steps are looked at, written and left; what was written in one is committed when it is left."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from optimum_mwanda import MWandaConfig, MWandaPruner
from optimum_mwanda.data.chunks import build_chunks
from optimum_mwanda.modeling.block_source import BlockSource
from optimum_mwanda.modeling.blocks import find_blocks, inference_mode
from optimum_mwanda.modeling.weights import find_weights, flat
from optimum_mwanda.walking.block_by_block import BlockByBlock
from optimum_mwanda.walking.editor import WeightEditor
from optimum_mwanda.walking.walk import Known, Walk
from tests.conftest import make_rows
from tests.families.matrix import FAMILIES

ROWS = make_rows("en sw", rows=3, length=24)
EQUAL = {"en": 0.5, "sw": 0.5}


def config(**values: str) -> MWandaConfig:
    return MWandaConfig(sequence_length=24, batch_size=2, **values)


def source_of(model: PreTrainedModel) -> BlockSource:
    return BlockSource(find_blocks(model))


def known(model: PreTrainedModel) -> Known:
    return Known(find_weights(find_blocks(model)), None, source_of(model))


def block_by_block(model: PreTrainedModel, **values: str) -> BlockByBlock:
    settings = config(**values)
    weights = find_weights(find_blocks(model))
    return BlockByBlock(model, weights, build_chunks(ROWS, settings, model), EQUAL, settings, source_of(model))


def first_half(matrix: Tensor) -> Tensor:
    pruned = torch.zeros_like(matrix, dtype=torch.bool)
    pruned[:, : matrix.shape[1] // 2] = True
    return pruned


@pytest.mark.parametrize("values", [{}, {"calibration": "sequential"}, {"refinement": "swap"}], ids=str)
def test_edits_of_a_step_are_made_when_it_is_left(values: dict[str, str]) -> None:
    model = FAMILIES["llama"].make()
    walk: Walk = known(model) if not values else block_by_block(model, **values)
    left: list[str] = []
    with inference_mode(model), WeightEditor(source_of(model)) as editor:
        for step in walk.steps(editor):
            assert list(walk.zeros) == left
            step.look()
            for weight in step.weights:
                before = weight.matrix.clone()
                step.write(weight, first_half(weight.matrix), None)
                assert torch.equal(weight.matrix, before)
                left.append(weight.name)
    assert left == list(walk.zeros)
    assert sorted(left) == sorted(weight.name for weight in flat(walk.weights))
    for weight in flat(walk.weights):
        assert walk.zeros[weight.name] == weight.numel // 2 == int((weight.matrix == 0).sum())


def test_a_walk_without_an_editor_changes_nothing() -> None:
    model = FAMILIES["llama"].make()
    walk = block_by_block(model, refinement="swap")
    before = [weight.matrix.clone() for weight in flat(walk.weights)]
    with inference_mode(model):
        for step in walk.steps():
            step.look()
            step.write(step.weights[0], first_half(step.weights[0].matrix), None)
    assert all(torch.equal(old, new.matrix) for old, new in zip(before, flat(walk.weights), strict=True))
    assert walk.zeros == {}


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ({"calibration": "sequential"}, ["qkvogud", "qkvogud"]),
        ({"refinement": "swap"}, ["qkvogud", "qkvogud"]),
        ({"refinement": "swap", "calibration": "sequential"}, ["qkv", "o", "gu", "d"] * 2),
    ],
    ids=str,
)
def test_steps_are_blocks_or_what_reads_one_input(values: dict[str, str], steps: list[str]) -> None:
    model = FAMILIES["llama"].make()
    found = []
    with inference_mode(model):
        for step in block_by_block(model, **values).steps():
            entries, grams = step.look()
            found.append("".join(weight.name.rpartition(".")[2][0] for weight in step.weights))
            assert entries.keys() == {weight.name for weight in step.weights}
            assert grams.keys() == (entries.keys() if "refinement" in values else set())
    assert found == steps


def test_the_zeros_of_fused_experts_are_those_of_their_parameter() -> None:
    model = FAMILIES["mixtral"].make()
    walk = known(model)
    with WeightEditor(source_of(model)) as editor:
        for step in walk.steps(editor):
            for weight in step.weights:
                if weight.expert in (0, 1):
                    step.write(weight, first_half(weight.matrix), None)
    experts = model.model.layers[0].mlp.experts.down_proj
    assert walk.zeros["model.layers.0.mlp.experts.down_proj"] == int((experts == 0).sum()) == experts.numel() // 4


def test_weights_that_are_nowhere_are_named() -> None:
    model = FAMILIES["llama"].make()
    model.model.layers[1].mlp.up_proj.to("meta")
    find_weights(find_blocks(model))  # finding them is no question of where they are
    with pytest.raises(ValueError, match=r"'model.layers.1.mlp.up_proj.weight' has no values .*load the whole model"):
        source_of(model)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_encoder_decoder_is_pruned_by_the_plan_of_its_statistics(family: str) -> None:
    """Recording the calls of the decoder must not count its text once more."""
    rows = FAMILIES[family].rows()
    model = FAMILIES[family].make()
    settings = {"group": "matrix", "allocation": "owl"}
    plain = MWandaPruner(config(**settings), progress=False)
    plan = plain.allocate(model, plain.calibrate(model, rows))
    MWandaPruner(config(refinement="swap", **settings), progress=False).prune(model, rows)
    assert len({block.sparsity for block in plan.blocks}) > 1
    for block, achieved in zip(plan.blocks, model.config.mwanda_config["blocks"]["sparsity"], strict=True):
        assert achieved == pytest.approx(block.sparsity, abs=1e-3)
