import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from optimum_mwanda.modeling import bits
from optimum_mwanda.modeling.bits import pack_bits, unpack_bits
from optimum_mwanda.pruning import masks, masks_on_cpu
from optimum_mwanda.pruning.masks import n_of_m_mask, prune_lowest, unstructured_mask

few_values = st.sampled_from([0.0, 1.0, 2.0, float("inf")])
any_values = st.one_of(few_values, st.floats(0, 2**100, width=32))


@st.composite
def score_matrices(draw: st.DrawFn, columns: st.SearchStrategy[int] = st.integers(1, 12)) -> Tensor:  # noqa: B008
    """Scores with few or many ties, often zeros."""
    rows, width = draw(st.integers(1, 6)), draw(columns)
    values = draw(st.sampled_from([few_values, any_values]))
    flat = draw(st.lists(values, min_size=rows * width, max_size=rows * width))
    return torch.tensor(flat, dtype=torch.float32).view(rows, width)


def lowest_by_stable_sort(scores: Tensor, count: int) -> Tensor:
    pruned = torch.zeros_like(scores, dtype=torch.bool)
    return pruned.scatter_(1, scores.argsort(dim=1, stable=True)[:, :count], True)


@given(score_matrices(), st.data())
@settings(deadline=None)
def test_the_lowest_are_those_of_a_stable_sort(scores: Tensor, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, scores.shape[1]))
    before = scores.clone()
    assert torch.equal(prune_lowest(scores, count), lowest_by_stable_sort(scores, count))
    assert torch.equal(scores, before)
    if count:
        assert torch.equal(masks._prune_lowest_on_device(scores, count), lowest_by_stable_sort(scores, count))


@given(score_matrices(), st.floats(0, 1))
@settings(deadline=None)
def test_every_row_loses_exactly_its_share(scores: Tensor, sparsity: float) -> None:
    count = math.floor(sparsity * scores.shape[1] + 0.5)
    mask = unstructured_mask(scores, sparsity, "row")
    assert mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [count] * len(scores)
    assert torch.equal(mask, lowest_by_stable_sort(scores, count))


@given(score_matrices(), st.floats(0, 1))
@settings(deadline=None)
def test_a_matrix_loses_exactly_its_share(scores: Tensor, sparsity: float) -> None:
    count = math.floor(sparsity * scores.numel() + 0.5)
    mask = unstructured_mask(scores, sparsity, "matrix")
    assert mask.shape == scores.shape
    assert mask.sum() == count
    assert torch.equal(mask.view(1, -1), lowest_by_stable_sort(scores.view(1, -1), count))


@given(score_matrices(st.sampled_from([8, 24])), st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 4), (4, 8), (7, 8)]))
@settings(deadline=None)
def test_every_run_keeps_exactly_n_of_m(scores: Tensor, pattern: tuple[int, int]) -> None:
    kept, run = pattern
    mask = n_of_m_mask(scores, kept, run)
    groups = mask.view(-1, run)
    assert ((~groups).sum(1) == kept).all()
    assert torch.equal(groups, lowest_by_stable_sort(scores.view(-1, run), run - kept))


@pytest.mark.parametrize("group", ["row", "matrix"])
def test_equal_scores_go_in_row_major_order(group: str) -> None:
    mask = unstructured_mask(torch.ones(2, 4), 0.5, group)
    expected = {"row": [[True, True, False, False]] * 2, "matrix": [[True] * 4, [False] * 4]}
    assert mask.tolist() == expected[group]


@pytest.mark.parametrize(
    ("sparsity", "pruned_of_five"), [(0.0, 0), (0.09, 0), (0.1, 1), (0.3, 2), (0.5, 3), (0.89, 4), (1.0, 5)]
)
def test_the_count_is_rounded_half_up(sparsity: float, pruned_of_five: int) -> None:
    assert unstructured_mask(torch.arange(5.0)[None], sparsity, "row").sum() == pruned_of_five


def test_a_transposed_matrix_is_pruned_in_its_own_row_major_order() -> None:
    scores = torch.arange(6.0).view(3, 2).T  # 0 2 4 / 1 3 5
    assert unstructured_mask(scores, 0.5, "matrix").tolist() == [[True, True, False], [True, False, False]]
    assert n_of_m_mask(scores, 1, 3).tolist() == [[True, True, False]] * 2


@given(st.lists(st.integers(1, 7), min_size=1, max_size=3), st.data())
@settings(deadline=None)
def test_packed_bits_come_back(shape: list[int], data: st.DataObject) -> None:
    size = math.prod(shape)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size))).view(shape)
    packed = pack_bits(mask)
    assert packed.dtype == torch.uint8
    assert packed.shape == (-(-size // 8),)
    assert torch.equal(unpack_bits(packed, mask.shape), mask)
    assert torch.equal(bits._packed_on_device(mask), packed)  # as on a GPU
    assert torch.equal(bits._unpacked_on_device(packed, mask.shape), mask)


def test_a_transposed_mask_comes_back() -> None:
    mask = torch.tensor([[True, False, False], [True, True, False]]).T
    assert torch.equal(unpack_bits(pack_bits(mask), mask.shape), mask)


def test_the_first_entry_is_the_lowest_bit() -> None:
    mask = torch.tensor([True, False, False, False, False, False, False, True, False, True])
    assert pack_bits(mask).tolist() == [129, 2]


def test_parts_of_a_large_matrix_are_pruned_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randint(5, (17, 12), generator=torch.Generator().manual_seed(0)).float()
    expected = lowest_by_stable_sort(scores, 7)
    monkeypatch.setattr(masks_on_cpu, "_CACHED", 40)
    monkeypatch.setattr(masks, "_ENTRIES", 40)
    for prune in (prune_lowest, masks._prune_lowest_on_device):
        assert torch.equal(prune(scores, 7), expected)
        assert torch.equal(prune(scores[:0], 7), expected[:0])


@given(score_matrices(st.integers(9, 60)), st.data())
@settings(deadline=None)
def test_long_rows_lose_those_that_a_stable_sort_puts_first(scores: Tensor, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, scores.shape[1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks_on_cpu, "_CACHED", 8)
        patch.setattr(masks_on_cpu, "_SAMPLE", 6)
        assert torch.equal(prune_lowest(scores, count), lowest_by_stable_sort(scores, count))


def test_a_sample_that_misleads_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks_on_cpu, "_CACHED", 1000)
    monkeypatch.setattr(masks_on_cpu, "_SAMPLE", 400)
    scores = torch.rand(1, 4000, generator=torch.Generator().manual_seed(0))
    scores[:, ::11] += 1  # of every eleventh, which the sample is made of, all are above all others
    assert torch.equal(prune_lowest(scores, 2000), lowest_by_stable_sort(scores, 2000))


@pytest.mark.parametrize("run", [2, 4, 8])
def test_parts_of_a_large_matrix_lose_as_many_of_every_run(run: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randint(4, (17, 24), generator=torch.Generator().manual_seed(0)).float()
    expected = lowest_by_stable_sort(scores.view(-1, run), run // 2).view(scores.shape)
    monkeypatch.setattr(masks_on_cpu, "_CACHED_RUNS", 16)
    assert torch.equal(n_of_m_mask(scores, run // 2, run), expected)
    assert n_of_m_mask(scores[:0], run // 2, run).shape == (0, 24)
    monkeypatch.setattr(masks_on_cpu, "WORDS", {})  # as on a machine of the other byte order
    assert torch.equal(n_of_m_mask(scores, run // 2, run), expected)


@given(score_matrices(st.sampled_from([16, 32])), st.sampled_from([(8, 16), (1, 16), (10, 32)]))
@settings(deadline=None)
def test_runs_short_and_long_lose_those_that_a_stable_sort_puts_first(scores: Tensor, kept_of: tuple[int, int]) -> None:
    kept, run = kept_of
    scores = scores.repeat(1, 2)
    expected = lowest_by_stable_sort(scores.reshape(-1, run), run - kept).view(scores.shape)
    assert torch.equal(n_of_m_mask(scores, kept, run), expected)


@pytest.mark.parametrize("run", [4, 64])
def test_other_types_of_scores_are_selected_likewise(run: int) -> None:
    scores = torch.randint(0, 9, (6, 64), generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        assert torch.equal(n_of_m_mask(scores.to(dtype), run // 2, run), n_of_m_mask(scores.float(), run // 2, run))
        assert torch.equal(prune_lowest(scores.to(dtype), 20), prune_lowest(scores.float(), 20))


@pytest.mark.parametrize("select", [lambda s: prune_lowest(s, 20), lambda s: n_of_m_mask(s, 2, 4)])
def test_scores_that_do_not_lie_in_a_row_are_selected_likewise(select: Callable[[Tensor], Tensor]) -> None:
    scores = torch.rand(64, 8, generator=torch.Generator().manual_seed(0)).T
    assert torch.equal(select(scores), select(scores.contiguous()))
