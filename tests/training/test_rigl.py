"""Masks that move, by hand and by their properties."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from optimum_mwanda.training.rigl import redraw_mask, update_fraction

PRUNED = torch.tensor([[False, True, False, True], [False, True, False, True]])
WEIGHT = torch.tensor([[1.0, 0.0, -9.0, 0.0], [-2.0, 0.0, 3.0, 0.0]])
GRADIENT = torch.tensor([[90.0, 1.0, 99.0, -5.0], [80.0, 7.0, 2.0, 4.0]])


def test_fraction_falls_along_a_half_cosine() -> None:
    assert update_fraction(0, 100, 0.3) == pytest.approx(0.3)
    assert update_fraction(25, 100, 0.3) == pytest.approx(0.15 * (1 + math.sqrt(0.5)))
    assert update_fraction(50, 100, 0.3) == pytest.approx(0.15)
    assert [update_fraction(step, 100) for step in (100, 101)] == [0, 0]


def test_small_weights_go_and_large_gradients_come() -> None:
    # Half of four kept weights: 1 and -2 go; the pruned entries with gradients 7 and -5 come back.
    expected = torch.tensor([[True, True, False, False], [True, False, False, True]])
    assert torch.equal(redraw_mask(WEIGHT, GRADIENT, PRUNED, 0.5), expected)


def test_counts_are_rounded_down() -> None:
    one = torch.tensor([[True, True, False, True], [False, False, False, True]])  # 1 goes, gradient 7 comes
    assert torch.equal(redraw_mask(WEIGHT, GRADIENT, PRUNED, 0.49), one)
    assert torch.equal(redraw_mask(WEIGHT, GRADIENT, PRUNED, 0.24), PRUNED)


def test_weights_that_are_too_large_stay() -> None:
    only_one = torch.tensor([[True, True, False, True], [False, False, False, True]])
    assert torch.equal(redraw_mask(WEIGHT, GRADIENT, PRUNED, 1.0, largest=1.0), only_one)
    assert torch.equal(redraw_mask(WEIGHT, GRADIENT, PRUNED, 1.0, largest=0.9), PRUNED)


def test_rows_and_patterns_keep_their_zeros() -> None:
    # Both that go lie in different rows, so each row takes its own largest gradient: -5 and 7.
    expected = torch.tensor([[True, True, False, False], [True, False, False, True]])
    assert torch.equal(redraw_mask(WEIGHT, GRADIENT, PRUNED, 0.5, run=4), expected)
    # In runs of two, each has one zero; the weights 1 and -2 change places with their neighbours.
    expected = torch.tensor([[True, False, False, True], [True, False, False, True]])
    assert torch.equal(redraw_mask(WEIGHT, GRADIENT, PRUNED, 0.5, run=2), expected)


def test_a_run_with_few_zeros_exchanges_no_more_than_these() -> None:
    pruned = torch.tensor([[True, False, False, False, True, True, False, False]])
    weight = torch.tensor([[0.0, 1.0, 2.0, 3.0, 0.0, 0.0, 4.0, 5.0]])
    # Of the first run only the weight 1 can go, for its one zero; of the second, 4 and then 5.
    expected = torch.tensor([[False, True, False, False, False, False, True, True]])
    assert torch.equal(redraw_mask(weight, torch.ones(1, 8), pruned, 1.0, run=4), expected)


def test_weights_without_gradient_do_not_come_back() -> None:
    gradient = torch.tensor([[90.0, 1.0, 99.0, 0.0], [80.0, 0.0, 2.0, 0.0]])
    # Two could go, but only one has a place to go to; with runs of a row, this must be one of the first row.
    expected = torch.tensor([[True, False, False, True], [False, True, False, True]])
    assert torch.equal(redraw_mask(WEIGHT, gradient, PRUNED, 0.5), expected)
    assert torch.equal(redraw_mask(WEIGHT, gradient, PRUNED, 1.0, run=4), expected)
    assert torch.equal(redraw_mask(WEIGHT, torch.zeros(2, 4), PRUNED, 1.0), PRUNED)


@pytest.mark.parametrize("fill", [True, False])
def test_matrices_without_zeros_or_without_weights_stay(fill: bool) -> None:
    pruned = torch.full((2, 4), fill)
    assert torch.equal(redraw_mask(WEIGHT, GRADIENT, pruned, 1.0), pruned)


def test_runs_that_do_not_fill_the_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="Rows of 4 entries cannot be cut into runs of 3: give a divisor"):
        redraw_mask(WEIGHT, GRADIENT, PRUNED, 0.5, run=3)


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1), st.sampled_from([None, 2, 4, 8]))
def test_zeros_stay_as_many_and_move_to_small_weights_and_gradients(
    seed: int, sparsity: float, fraction: float, run: int | None
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, gradient = torch.randn(2, 6, 8, generator=generator)
    pruned = torch.rand(6, 8, generator=generator) < sparsity
    weight = weight.masked_fill(pruned, 0)
    before = [weight.clone(), gradient.clone(), pruned.clone()]
    after = redraw_mask(weight, gradient, pruned, fraction, run)
    assert all(torch.equal(*pair) for pair in zip(before, (weight, gradient, pruned), strict=True))

    def runs(mask: Tensor) -> Tensor:
        return mask.reshape(1, -1) if run is None else mask.reshape(-1, run)

    assert torch.equal(runs(after).sum(1), runs(pruned).sum(1))
    gone, back = after & ~pruned, pruned & ~after
    kept = int((~pruned).sum())
    assert gone.sum() == back.sum() <= fraction * kept
    assert not (gone & pruned).any()
    if run is None:
        assert gone.sum() == min(int(fraction * kept), int(pruned.sum()))
    for g, b, a, p, w, d in zip(*map(runs, (gone, back, after, pruned, weight.abs(), gradient.abs())), strict=True):
        if g.any():
            assert (w[~a & ~p] >= w[g].max()).all()  # what stays is larger than what went
            assert (d[a & p] <= d[b].min()).all()  # what stays pruned has smaller gradients than what came back
