import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from optimum_mwanda.pruning.joint_refinement import refine_jointly
from optimum_mwanda.pruning.masks import n_of_m_mask, prune_lowest
from optimum_mwanda.pruning.refinement import refine_mask

from ..reference.joint import joint_error, refine

Layer = tuple[Tensor, Tensor, Tensor, Tensor]


def make_layer(rows: int, width: int, count: int, seed: int, coupling: float = 1.0) -> Layer:
    """Weights, a random mask, correlated inputs, and outputs of which some pull the loss the same way."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs, gradients = draw(20, width) + draw(20, 1), draw(20, rows) + coupling * draw(20, 1)
    pruned = prune_lowest(torch.rand(rows, width, generator=generator), count)
    return draw(rows, width), pruned, inputs.T @ inputs / 20, gradients.T @ gradients / 20


def error_of(weight: Tensor, pruned: Tensor, gram: Tensor, outputs: Tensor) -> float:
    return joint_error(*(each.numpy() for each in (weight, pruned, gram, outputs)))


@given(st.integers(1, 6), st.integers(2, 8), st.integers(0, 10**6), st.floats(0, 10), st.integers(1, 30))
@settings(max_examples=60)
def test_error_never_rises_and_every_row_keeps_its_count(
    rows: int, width: int, seed: int, coupling: float, rounds: int
) -> None:
    layer = make_layer(rows, width, width // 2, seed, coupling)
    weight, pruned, gram, outputs = layer
    before = pruned.clone()
    refined = refine_jointly(*layer, rounds=rounds)
    assert torch.equal(pruned, before)
    assert torch.equal(refined.sum(1), pruned.sum(1))
    old, new = error_of(*layer), error_of(weight, refined, gram, outputs)
    assert new < old if (refined != pruned).any() else new == old
    assert torch.equal(refined, refine_jointly(*layer, rounds=rounds))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("width", "run"), [(6, None), (8, 4), (6, 2)])
def test_masks_are_those_of_the_reference(width: int, run: int | None, seed: int) -> None:
    weight, pruned, gram, outputs = make_layer(5, width, width // 2, seed, coupling=3.0)
    if run is not None:
        pruned = n_of_m_mask(weight.abs(), run // 2, run)
    refined = refine_jointly(weight, pruned, gram, outputs, run=run, rounds=12)
    arrays = (each.numpy() for each in (weight, pruned, gram, outputs))
    assert np.array_equal(refined.numpy(), refine(*arrays, run or width, 12, 1e-6, 0))
    if run is not None:
        assert (refined.unflatten(1, (-1, run)).sum(2) == run // 2).all()


def test_rows_that_pull_alike_cancel_each_others_errors() -> None:
    weight, pruned, gram, outputs = make_layer(8, 16, 8, seed=1, coupling=5.0)
    alone = refine_mask(weight, pruned, gram)
    jointly = refine_jointly(weight, pruned, gram, outputs, rounds=200)
    assert error_of(weight, jointly, gram, outputs) < 0.7 * error_of(weight, alone, gram, outputs)


def test_uncoupled_rows_are_refined_one_by_one() -> None:
    weight, pruned, gram, outputs = make_layer(6, 10, 5, seed=2)
    diagonal = torch.diag(outputs.diagonal())
    alone = refine_mask(weight, pruned, gram)
    assert torch.equal(refine_jointly(weight, pruned, gram, diagonal, rounds=500), alone)
