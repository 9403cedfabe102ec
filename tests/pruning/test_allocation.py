from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimum_mwanda.pruning.allocation import (
    allocate,
    allocate_outliers,
    allocate_ratios,
    cross_lingual_correlation,
    median_score,
    outlier_share,
)
from tests.reference.allocations import reference_dlp, reference_ratios

Problem = tuple[list[float], list[int], float, float, tuple[float, float]]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Importances with and without ties, blocks of very different sizes, and bounds around the target."""
    blocks = draw(st.integers(1, 8))
    values = draw(st.sampled_from([st.floats(-1e3, 1e3), st.sampled_from([0.0, 1.0]), st.floats(0.1, 0.1 + 1e-12)]))
    importance = draw(st.lists(values, min_size=blocks, max_size=blocks))
    sizes = draw(st.lists(st.integers(1, 10**9), min_size=blocks, max_size=blocks))
    low, target, high = sorted(draw(st.lists(st.floats(0, 1), min_size=3, max_size=3)))
    return importance, sizes, target, draw(st.floats(0, 2)), (low, high)


@given(problems())
@settings(deadline=None, max_examples=300)
def test_an_allocation_meets_target_bounds_range_and_order(problem: Problem) -> None:
    importance, sizes, target, strength, (low, high) = problem
    sparsities = allocate(importance, sizes, target, strength, (low, high))
    assert np.average(sparsities, weights=sizes) == pytest.approx(target, abs=1e-9)
    assert all(low - 1e-12 <= s <= high + 1e-12 for s in sparsities)
    assert max(sparsities) - min(sparsities) <= 2 * strength + 1e-11
    ranked = sorted(zip(importance, sparsities, strict=True))
    for (less, sparser), (more, denser) in pairwise(ranked):
        assert denser <= sparser if more > less else denser == sparser


@given(problems())
@settings(deadline=None)
def test_without_bounds_in_the_way_sparsities_span_twice_the_strength(problem: Problem) -> None:
    importance, sizes, _, _, _ = problem
    sparsities = allocate(importance, sizes, 0.5, 0.1)
    spread = 0.2 if max(importance) > min(importance) else 0
    assert max(sparsities) - min(sparsities) == pytest.approx(spread, abs=1e-11)


@pytest.mark.parametrize(
    ("importance", "sizes", "bounds", "expected"),
    [
        ([0, 1], [1, 1], (0, 1), [0.6, 0.4]),
        # s = (c, c − 0.2) with c + 3·(c − 0.2) = 4·0.5
        ([0, 1], [1, 3], (0, 1), [0.65, 0.45]),
        # the first stops at 0.6 and the second takes (2 − 0.6)/3
        ([0, 1], [1, 3], (0, 0.6), [0.6, 0.466666666667]),
        # (c, c − 0.1, c − 0.2): the last two stop at 0.48 and leave 1.5 − 0.96
        ([0, 5, 10], [1, 1, 1], (0.48, 1), [0.54, 0.48, 0.48]),
        # the last stops at 0.45; (c, c − 0.1) share 1.5 − 0.45
        ([0, 5, 10], [1, 1, 1], (0.45, 1), [0.575, 0.475, 0.45]),
        ([2, 2, 2], [1, 2, 3], (0, 1), [0.5, 0.5, 0.5]),
        ([7], [3], (0, 1), [0.5]),
        ([0, 1], [1, 3], (0.5, 0.5), [0.5, 0.5]),
    ],
)
def test_allocations_by_hand(
    importance: list[float], sizes: list[int], bounds: tuple[float, float], expected: list[float]
) -> None:
    assert allocate(importance, sizes, 0.5, 0.1, bounds) == pytest.approx(expected, abs=2e-12)


def test_sparsities_have_at_most_twelve_decimals() -> None:
    sparsities = allocate([0.0, 0.3, 1.0], [3, 5, 7], 0.5, 0.1)
    assert sparsities == [round(s, 12) for s in sparsities]


def test_only_the_order_and_spacing_of_importances_matter() -> None:
    importance = np.array([0.25, 0.5, 1.0, 0.0])
    expected = allocate(importance.tolist(), [1, 2, 3, 4], 0.6, 0.1)
    assert allocate((4 * importance - 8).tolist(), [1, 2, 3, 4], 0.6, 0.1) == expected


@pytest.mark.parametrize(
    ("importance", "sizes", "bounds", "expected"),
    [
        # the median is 2: 5 is 2.5 times that, 4 is twice that; s = c − (0.2, 0, 0.1, 0, 0) with 5c − 0.3 = 2.5
        ([5, 2, 4, 2, 1], [1] * 5, (0, 1), [0.36, 0.56, 0.46, 0.56, 0.56]),
        # more than 2.5 times the median is no more than 2.5 times
        ([900, 1, 1], [2, 1, 1], (0, 1), [0.4, 0.6, 0.6]),
        # the protected block stops at 0.45, and the others take 1.5 − 0.45
        ([900, 1, 1], [1, 1, 1], (0.45, 1), [0.45, 0.525, 0.525]),
        # the median of an even number lies halfway between the middle two: 1.5 here
        ([1, 1, 2, 3], [1] * 4, (0, 1), [0.525, 0.525, 0.525, 0.425]),
        # most blocks have no outlier at all: those that have one are protected
        ([0, 0.1, 0], [1, 1, 1], (0, 1), [0.566666666667, 0.366666666667, 0.566666666667]),
        ([0, 0], [1, 2], (0, 1), [0.5, 0.5]),
        ([3, 4, 5, 4.4], [1, 2, 3, 4], (0, 1), [0.5] * 4),
    ],
)
def test_outlying_blocks_by_hand(
    importance: list[float], sizes: list[int], bounds: tuple[float, float], expected: list[float]
) -> None:
    assert allocate_outliers(importance, sizes, 0.5, 0.1, bounds) == pytest.approx(expected, abs=2e-12)


@given(problems())
@settings(deadline=None, max_examples=200)
def test_protecting_outlying_blocks_meets_target_bounds_range_and_order(problem: Problem) -> None:
    signed, sizes, target, strength, (low, high) = problem
    importance = [abs(each) for each in signed]
    sparsities = allocate_outliers(importance, sizes, target, strength, (low, high))
    assert np.average(sparsities, weights=sizes) == pytest.approx(target, abs=1e-9)
    assert all(low - 1e-12 <= s <= high + 1e-12 for s in sparsities)
    assert max(sparsities) - min(sparsities) <= 2 * strength + 1e-11
    for (_, sparser), (_, denser) in pairwise(sorted(zip(importance, sparsities, strict=True))):
        assert denser <= sparser + 1e-12
    assert allocate_outliers([4 * each for each in importance], sizes, target, strength, (low, high)) == sparsities


@given(problems(), st.floats(0, 1))
@settings(deadline=None, max_examples=200)
def test_ratios_meet_target_bounds_and_order(problem: Problem, spread: float) -> None:
    importance, sizes, target, _, (low, high) = problem
    sparsities = allocate_ratios(importance, sizes, target, spread, (low, high))
    assert np.average(sparsities, weights=sizes) == pytest.approx(target, abs=1e-9)
    assert all(low - 1e-12 <= s <= high + 1e-12 for s in sparsities)
    for (less, sparser), (more, denser) in pairwise(sorted(zip(importance, sparsities, strict=True))):
        assert denser <= sparser if more > less else denser == sparser


@given(problems(), st.floats(0, 0.9))
@settings(deadline=None)
def test_ratios_equal_the_reference(problem: Problem, spread: float) -> None:
    importance, sizes, target, _, _ = problem
    expected = reference_ratios(importance, sizes, target / 2, spread)
    if max(expected) <= 1:
        assert allocate_ratios(importance, sizes, target / 2, spread) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    ("importance", "sizes", "bounds", "expected"),
    [
        ([0, 1], [1, 1], (0, 1), [0.6, 0.4]),  # 1.2 : 0.8 around 0.5
        ([0, 1], [1, 4], (0, 1), [0.681818181818, 0.454545454545]),  # c·(1.2 + 4 · 0.8) = 5 · 0.5
        ([0, 2, 1], [1, 1, 2], (0, 1), [0.6, 0.4, 0.5]),
        ([0, 2, 1], [1, 1, 2], (0, 0.55), [0.55, 0.416666666667, 0.516666666667]),  # 2 − 0.55 = d − 0.1 + 2d
        ([3, 3], [1, 2], (0, 1), [0.5, 0.5]),
    ],
)
def test_ratios_by_hand(
    importance: list[float], sizes: list[int], bounds: tuple[float, float], expected: list[float]
) -> None:
    assert allocate_ratios(importance, sizes, 0.5, 0.2, bounds) == pytest.approx(expected, abs=2e-12)


def test_the_ratio_of_the_extremes_does_not_depend_on_the_target() -> None:
    for target in (0.3, 0.6):
        low, high = sorted(allocate_ratios([0.3, 0.1, 0.2], [5, 7, 11], target, 0.3))[::2]
        assert high / low == pytest.approx(1.3 / 0.7, rel=1e-9)


def test_the_median_is_taken_over_all_matrices_of_the_block() -> None:
    scores = [torch.tensor([[9.0, 1, 8]]), torch.tensor([[2.0], [3]])]
    assert median_score(scores) == 3  # of 1 2 3 8 9
    assert median_score(scores[:1]) == 8
    assert median_score([torch.tensor([[4.0, 1], [7, 2]])]) == 2  # the lower of the two in the middle


@given(st.lists(st.floats(0.01, 10), min_size=2, max_size=6).filter(lambda medians: max(medians) - min(medians) > 1e-3))
@settings(deadline=None)
def test_minus_the_median_allocates_as_the_steps_of_dlp(medians: list[float]) -> None:
    sparsities = allocate([-median for median in medians], [10] * len(medians), 0.5, 0.15)
    assert sparsities == pytest.approx(reference_dlp(medians, 0.5, 0.15), abs=1e-9)


def test_outliers_are_counted_over_all_matrices_of_the_block() -> None:
    # the mean is 20/8 = 2.5, so that 13 exceeds 5 · 2.5 = 12.5: one entry of eight
    scores = [torch.ones(1, 4), torch.tensor([[1.0, 1], [1, 13]])]
    assert outlier_share(lambda: scores, 5.0) == 12.5


def test_an_entry_at_the_threshold_is_no_outlier() -> None:
    # the mean is 2, and 4 does not exceed 2 · 2
    assert outlier_share(lambda: [torch.tensor([[1.0, 1, 2, 4]])], 2.0) == 0
    assert outlier_share(lambda: [torch.tensor([[1.0, 1, 2, 4]])], 1.9) == 25


def test_scores_of_zero_have_no_outliers() -> None:
    assert outlier_share(lambda: [torch.zeros(2, 3)], 5.0) == 0


@given(st.integers(2, 5), st.integers(3, 20), st.integers(0, 10**6))
@settings(deadline=None)
def test_the_cross_lingual_correlation_is_the_mean_over_pairs(languages: int, channels: int, seed: int) -> None:
    rms = np.random.default_rng(seed).uniform(0.1, 3, (languages, channels))
    pairs = np.corrcoef(rms)[np.triu_indices(languages, 1)]
    assert cross_lingual_correlation(torch.from_numpy(rms**2)) == pytest.approx(pairs.mean(), abs=1e-9)


@pytest.mark.parametrize(
    ("rms", "expected"),
    [
        ([[1, 2, 3], [2, 4, 6]], 1),
        ([[1, 2, 3], [3, 2, 1]], -1),
        ([[1, 2, 3], [1, 2, 3], [3, 2, 1]], -1 / 3),  # 1 − 1 − 1 over three pairs
        ([[1, 2, 1, 2], [1, 1, 2, 2]], 0),
    ],
)
def test_correlations_by_hand(rms: list[list[float]], expected: float) -> None:
    mean_square = torch.tensor(rms, dtype=torch.float64).square()
    assert cross_lingual_correlation(mean_square) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1.0, 1e-20, 1e20])
def test_a_pair_with_a_constant_profile_counts_zero(constant: float) -> None:
    profiles = torch.tensor([[1.0, 2, 3, 5, 8, 13, 21], [1, 2, 3, 5, 8, 13, 21], [constant] * 7], dtype=torch.float64)
    assert cross_lingual_correlation(profiles.square()) == pytest.approx(1 / 3, abs=1e-9)
    assert cross_lingual_correlation(profiles[1:].square()) == 0
