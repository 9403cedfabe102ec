from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from optimum_mwanda.pruning.masks import n_of_m_mask, prune_lowest
from optimum_mwanda.pruning.refinement import refine_mask, shrink_gram
from optimum_mwanda.pruning.swaps import lowest
from tests.reference import swaps as reference

Layer = tuple[Tensor, Tensor, Tensor]


def errors(weight: Tensor, pruned: Tensor, gram: Tensor) -> Tensor:
    """`dᵀGd` of every row, in float64."""
    removed = (weight * pruned).double()
    return ((removed @ gram.double()) * removed).sum(1)


@st.composite
def layers(draw: st.DrawFn, columns: st.SearchStrategy[int] = st.integers(2, 9)) -> Layer:  # noqa: B008
    """Weights, the activations' Gram, correlated or of low rank, and a random mask with as many entries in each row."""
    rows, width = draw(st.integers(1, 5)), draw(columns)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    tokens = torch.randn(draw(st.integers(1, 20)), width, generator=generator, dtype=torch.float64)
    mixed = tokens @ torch.randn(width, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    count = draw(st.integers(0, width))
    pruned = prune_lowest(torch.rand(rows, width, generator=generator), count)
    return weight, pruned, mixed.T @ mixed / len(mixed)


def swaps(pruned: Tensor, run: int) -> list[Tensor]:
    """All masks of one row that one swap within a run leads to."""
    masks = []
    for back, out in product(range(len(pruned)), repeat=2):
        if pruned[back] and not pruned[out] and back // run == out // run:
            mask = pruned.clone()
            mask[back], mask[out] = False, True
            masks.append(mask)
    return masks


@given(layers(), st.integers(1, 9))
@settings(max_examples=60)
def test_no_row_loses_and_every_row_keeps_its_count(layer: Layer, candidates: int) -> None:
    weight, pruned, gram = layer
    before = pruned.clone()
    refined = refine_mask(weight, pruned, gram, candidates=candidates)
    assert torch.equal(pruned, before)
    assert refined.dtype == torch.bool
    assert torch.equal(refined.sum(1), pruned.sum(1))
    old, new = errors(weight, pruned, gram), errors(weight, refined, gram)
    moved = (refined != pruned).any(1)
    assert (new[moved] < old[moved]).all()
    assert torch.equal(refined, refine_mask(weight, pruned, gram, candidates=candidates))


@given(layers())
@settings(max_examples=40)
def test_with_all_candidates_no_swap_improves_any_further(layer: Layer) -> None:
    weight, pruned, gram = layer
    refined = refine_mask(weight, pruned, gram)
    least = 1e-6 * (weight.square() @ gram.diagonal())
    for row, mask, reached, tolerance in zip(weight, refined, errors(weight, refined, gram), least, strict=True):
        for other in swaps(mask, len(mask)):
            assert errors(row[None], other[None], gram)[0] >= reached - 1.001 * tolerance


@given(layers(st.sampled_from([8, 12])), st.sampled_from([(1, 2), (2, 4), (3, 4), (1, 4)]))
@settings(max_examples=40)
def test_n_of_m_masks_stay_so_and_no_swap_within_a_run_improves_them(layer: Layer, pattern: tuple[int, int]) -> None:
    weight, _, gram = layer
    kept, run = pattern
    pruned = n_of_m_mask(weight.abs(), kept, run)
    refined = refine_mask(weight, pruned, gram, run=run)
    assert (refined.unflatten(1, (-1, run)).sum(2) == run - kept).all()
    assert (errors(weight, refined, gram) <= errors(weight, pruned, gram)).all()
    least = 1e-6 * (weight.square() @ gram.diagonal())
    for row, mask, reached, tolerance in zip(weight, refined, errors(weight, refined, gram), least, strict=True):
        for other in swaps(mask, run):
            assert errors(row[None], other[None], gram)[0] >= reached - 1.001 * tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("width", "run", "candidates"), [(96, None, 5), (150, None, 32), (61, None, 9), (64, 4, 32), (96, 4, 9)]
)
def test_every_swap_is_that_of_the_slow_reference(
    dtype: torch.dtype, width: int, run: int | None, candidates: int
) -> None:
    generator = torch.Generator().manual_seed(width)
    tokens = torch.randn(200, width, generator=generator) @ torch.randn(width, width, generator=generator)
    weight = torch.randn(4, width, generator=generator, dtype=dtype)
    gram = (tokens.T @ tokens).to(dtype)
    pruned = prune_lowest(torch.rand(4, width, generator=generator).view(-1, run or width), (run or width) // 2)
    pruned = pruned.view(4, width)
    limits = (run, candidates, 1e-6)
    rows = zip(weight.numpy(), pruned.numpy(), strict=True)
    expected = [torch.from_numpy(reference.refine(row, mask, gram.numpy(), *limits)) for row, mask in rows]
    refined = refine_mask(weight, pruned, gram, run=run, candidates=candidates)
    assert torch.equal(refined, torch.stack(expected))
    assert ((refined & ~pruned).sum(1) > 3).all()


@pytest.mark.parametrize("width", [30, 500])
@pytest.mark.parametrize("count", [1, 7, 30])
def test_the_lowest_are_found(width: int, count: int) -> None:
    generator = torch.Generator().manual_seed(width + count)
    values = torch.randn(6, width, generator=generator)
    values[1, : width - count // 2] = torch.inf  # fewer are finite than wanted
    values[2] = values[2].round()  # many are equal
    values[3] = values[3].sort(descending=True).values
    values[4, 3] = torch.nan
    for rows in (values, values[:1], values[3:4]):
        found, columns = lowest(rows, count)
        exact = {"rtol": 0, "atol": 0, "equal_nan": True}
        torch.testing.assert_close(found, rows.sort(1).values[:, :count], **exact)
        torch.testing.assert_close(rows.gather(1, columns), found, **exact)
        assert all(len(set(row)) == count for row in columns.tolist())


@given(layers())
@settings(max_examples=40)
def test_rows_do_not_depend_on_each_other(layer: Layer) -> None:
    weight, pruned, gram = layer
    alone = [refine_mask(row[None], mask[None], gram) for row, mask in zip(weight, pruned, strict=True)]
    assert torch.equal(torch.cat(alone), refine_mask(weight, pruned, gram))


def test_many_rows_are_refined_in_parts() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 40, generator=generator).repeat(7000, 1)  # more than 2²⁴ / 32² = 16384
    tokens = torch.randn(60, 40, generator=generator) @ torch.randn(40, 40, generator=generator)
    pruned = prune_lowest(weight.abs(), 4)
    refined = refine_mask(weight, pruned, tokens.T @ tokens, candidates=32)
    assert not torch.equal(refined, pruned)
    assert torch.equal(refined, refined[:3].repeat(7000, 1))


def test_without_correlation_the_result_is_that_of_wanda_per_row() -> None:
    generator = torch.Generator().manual_seed(1)
    weight, norms = torch.randn(6, 20, generator=generator), torch.rand(20, generator=generator) + 0.1
    start = prune_lowest(torch.rand(6, 20, generator=generator), 12)
    expected = prune_lowest(weight.abs() * norms, 12)
    assert torch.equal(refine_mask(weight, start, torch.diag(norms.square())), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_swap_by_hand(dtype: torch.dtype) -> None:
    # x₀ = −x₁ on every token, so that weights 0 and 1 together do nothing: pruning both costs (1 − 1)² = 0, where
    # the two smallest, 1 and 2, cost 1 + 0.25.
    gram = torch.tensor([[1.0, -1, 0], [-1, 1, 0], [0, 0, 1]])
    weight = torch.tensor([[1.0, 1, 0.5]], dtype=dtype)
    start = torch.tensor([[False, True, True]])
    assert refine_mask(weight, start, gram).tolist() == [[True, True, False]]
    assert refine_mask(weight, ~start, gram).tolist() == [[False, False, True]]  # of one, the smallest goes


@given(layers(), st.integers(0, 3))
@settings(max_examples=30)
def test_a_round_swaps_at_most_half_of_the_candidates_of_each_row(layer: Layer, rounds: int) -> None:
    weight, pruned, gram = layer
    refined = refine_mask(weight, pruned, gram, rounds=rounds)
    assert ((refined & ~pruned).sum(1) <= rounds * max(1, weight.shape[1] // 2)).all()
    assert (errors(weight, refined, gram) <= errors(weight, pruned, gram)).all()
    if rounds == 0:
        assert torch.equal(refined, pruned)


def test_a_round_makes_eight_swaps_of_a_row_that_has_as_many_to_make() -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(5, 100, generator=generator)
    pruned = ~prune_lowest(weight.abs(), 50)  # the largest
    refined = refine_mask(weight, pruned, torch.eye(100), rounds=1)
    assert ((refined & ~pruned).sum(1) == 8).all()


def test_channels_that_are_silent_do_not_matter() -> None:
    weight = torch.tensor([[3.0, 0.1, 0.2]])
    gram = torch.diag(torch.tensor([0.0, 1, 1]))
    assert refine_mask(weight, torch.tensor([[False, True, False]]), gram).tolist() == [[True, False, False]]
    nothing = torch.tensor([[True, False, False]])
    assert torch.equal(refine_mask(weight, nothing, torch.zeros(3, 3)), nothing)


def test_shrinking_weakens_correlations_and_lifts_every_channel() -> None:
    gram = torch.tensor([[1.0, 2, 0], [2, 9, -3], [0, -3, 4]])
    # off the diagonal 3/4 is left; 0.5 times the median, 4, is added on it
    expected = torch.tensor([[3.0, 1.5, 0], [1.5, 11, -2.25], [0, -2.25, 6]])
    assert torch.equal(shrink_gram(gram, 0.25, 0.5), expected)
    assert torch.equal(shrink_gram(gram, 0.0, 0.0), gram)


def test_most_channels_may_be_dead_and_every_one_is_lifted() -> None:
    gram = torch.zeros(7, 7)
    gram[2, 2], gram[5, 5], gram[2, 5], gram[5, 2] = 4.0, 6.0, 1.0, 1.0
    # of the two that are active the lower is the median: 0.5 times 4 is added to all
    assert shrink_gram(gram, 0.0, 0.5).diagonal().tolist() == [2, 2, 6, 2, 2, 8, 2]
    assert torch.equal(shrink_gram(torch.zeros(3, 3), 0.3, 2.0), torch.zeros(3, 3))


@given(layers(), st.integers(1, 20), st.floats(0, 1), st.floats(0, 10))
@settings(max_examples=40)
def test_dead_channels_change_nothing_for_the_others(layer: Layer, dead: int, shrinkage: float, ridge: float) -> None:
    _, _, gram = layer
    width = len(gram)
    padded = torch.nn.functional.pad(gram, (0, dead, 0, dead))
    expected, found = (shrink_gram(g, shrinkage, ridge) for g in (gram, padded))
    assert torch.equal(found[:width, :width], expected)
    assert (found.diagonal()[width:] == ridge * gram.diagonal().median()).all()


@given(layers(), st.floats(0, 1), st.floats(0, 10))
@settings(max_examples=40)
def test_a_shrunk_gram_is_no_less_positive(layer: Layer, shrinkage: float, ridge: float) -> None:
    _, _, gram = layer
    lowest, shrunk = (torch.linalg.eigvalsh(g)[0].item() for g in (gram, shrink_gram(gram, shrinkage, ridge)))
    assert shrunk >= lowest - 1e-9 * gram.trace().item()


def test_shrinking_leads_from_the_layer_error_to_wanda_and_to_magnitude() -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(5, 16, generator=generator)
    tokens = torch.randn(50, 16, generator=generator) @ torch.randn(16, 16, generator=generator)
    gram, start = tokens.T @ tokens, prune_lowest(torch.rand(5, 16, generator=generator), 8)
    wanda = prune_lowest(weight.abs() * gram.diagonal().sqrt(), 8)
    assert not torch.equal(refine_mask(weight, start, gram), wanda)
    assert torch.equal(refine_mask(weight, start, shrink_gram(gram, 1.0, 0.0)), wanda)
    assert torch.equal(
        refine_mask(weight, start, shrink_gram(gram, 0.0, 1e6), tolerance=0), prune_lowest(weight.abs(), 8)
    )
