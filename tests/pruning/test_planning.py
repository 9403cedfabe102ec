"""DLP and AlphaPruning through the pruner, against their papers' formulas."""

import dataclasses

import numpy as np
import pytest
import torch

from optimum_mwanda import MWandaConfig, MWandaPruner
from optimum_mwanda.modeling.blocks import find_blocks
from optimum_mwanda.modeling.weights import find_weights
from optimum_mwanda.pruning.planning import block_importance, share_out
from optimum_mwanda.registry import ALLOCATIONS
from tests.conftest import FAMILIES, make_model, make_rows
from tests.reference.allocations import reference_dlp, reference_power_law_exponent, reference_ratios

ROWS = make_rows(rows=3, length=32)


def pruner(**values: object) -> MWandaPruner:
    return MWandaPruner(MWandaConfig(sequence_length=32, **values), progress=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_dlp_prunes_blocks_of_a_high_median_score_most(family: str) -> None:
    model = make_model(family)
    statistics = pruner().calibrate(model, ROWS)
    plan = pruner(allocation="dlp", allocation_strength=0.15, sparsity=0.6).allocate(model, statistics)
    medians = []
    for found in find_weights(find_blocks(model)).values():
        norms = [statistics.weights[w.name].mean_square.mean(0).sqrt().float() for w in found]
        scores = torch.cat([(w.matrix.abs() * norm).flatten() for w, norm in zip(found, norms, strict=True)])
        medians.append(scores.median().item())
    expected = reference_dlp(medians, 0.6, 0.15)
    assert [block.sparsity for block in plan.blocks] == pytest.approx(expected, abs=1e-6)
    assert np.argmax(medians) == np.argmax([block.sparsity for block in plan.blocks])


@pytest.mark.parametrize("criterion", ["magnitude", "wanda"])
@pytest.mark.parametrize("family", FAMILIES)
def test_alpha_prunes_heavy_tails_less_and_needs_no_data_for_it(family: str, criterion: str) -> None:
    model = make_model(family)
    with torch.no_grad():  # a power law has a heavier tail than the spectrum of random weights
        for name, parameter in model.named_parameters():
            if ".1." in name and parameter.dim() == 2:
                left, values, right = torch.linalg.svd(parameter, full_matrices=False)
                parameter.copy_(left / torch.arange(1, len(values) + 1).pow(3) @ right)
    settings = pruner(criterion=criterion, allocation="alpha", allocation_strength=0.3, sparsity=0.6)
    if criterion == "magnitude":
        plan = settings.allocate(model)
        settings.prune(model)
    else:
        plan = settings.allocate(model, settings.calibrate(model, ROWS))
    blocks = find_weights(find_blocks(make_model(family))).values()
    sizes = [sum(w.numel for w in found) for found in blocks]
    importance = [block.importance for block in plan.blocks]
    assert [b.sparsity for b in plan.blocks] == pytest.approx(reference_ratios(importance, sizes, 0.6, 0.3), abs=1e-9)
    assert plan.planned == pytest.approx(0.6, abs=1e-9)
    assert min(plan.blocks, key=lambda block: block.sparsity).name.endswith(".1")


def test_the_importance_of_alpha_is_minus_the_mean_exponent_of_a_block() -> None:
    model = make_model()
    plan = pruner(criterion="magnitude", allocation="alpha").allocate(model)
    for block, found in zip(plan.blocks, find_weights(find_blocks(model)).values(), strict=True):
        exponents = [reference_power_law_exponent(w.matrix.double().numpy()) for w in found]
        assert block.importance == pytest.approx(-np.mean(exponents), rel=1e-4)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_blocks_can_be_looked_at_one_by_one(allocation: str) -> None:
    model = make_model()
    config = pruner(allocation=allocation, allocation_strength=0.2).config
    statistics = pruner().calibrate(model, ROWS)
    blocks = find_weights(find_blocks(model))
    importance, sizes = [], {}
    for name, weights in blocks.items():  # with the statistics of that block alone, as if there were no others
        entries = {weight.name: statistics.weights[weight.name] for weight in weights}
        importance.append(block_importance(weights, dataclasses.replace(statistics, weights=entries), config))
        sizes[name] = sum(weight.numel for weight in weights)
    plan = share_out(sizes, importance, config)
    assert plan == pruner(allocation=allocation, allocation_strength=0.2).allocate(model, statistics)
    assert [block.importance is None for block in plan.blocks] == [allocation == "uniform"] * 3
    # No block of this model stands out.
    assert len({block.sparsity for block in plan.blocks}) == (1 if allocation in ("uniform", "outliers") else 3)


def test_a_block_without_importance_is_taken_for_average() -> None:
    config = pruner(allocation="owl", allocation_strength=0.1).config
    plan = share_out({"a": 5, "b": 5, "c": 5}, [1.0, None, 3.0], config)
    assert [block.sparsity for block in plan.blocks] == pytest.approx([0.6, 0.5, 0.4])
    assert {block.sparsity for block in share_out({"a": 5, "b": 7}, [None, None], config).blocks} == {0.5}
