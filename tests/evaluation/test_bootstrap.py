"""Resampling of windows, against enumeration, formulas and simulation."""

import itertools

import numpy as np
import pytest

from optimum_mwanda.evaluation.bootstrap import MAX_COUNTS, RESAMPLES, Estimate, estimate, resampled_sums


@pytest.mark.parametrize("windows", [2, 3])
def test_resamples_have_the_distribution_that_enumeration_gives(windows: int) -> None:
    values = [1.0, 10.0, 100.0][:windows]
    outcomes = [sum(drawn) for drawn in itertools.product(values, repeat=windows - 1)]
    resampled = resampled_sums(np.array([values]).T, "en")[:, 0]
    assert set(resampled) == set(outcomes)
    for outcome in set(outcomes):
        share = outcomes.count(outcome) / len(outcomes)
        deviation = (share * (1 - share) / RESAMPLES) ** 0.5
        assert np.mean(resampled == outcome) == pytest.approx(share, abs=4 * deviation)


def test_constant_windows_do_not_vary() -> None:
    resampled = resampled_sums(np.full((7, 1), 0.1), "en")
    assert np.allclose(resampled, 0.6, atol=1e-12)


def test_variance_of_a_mean_is_that_of_the_textbook_for_few_windows_and_many() -> None:
    random = np.random.default_rng(0)
    for windows in (2, 5, 40):
        values = random.normal(size=windows)
        resampled = resampled_sums(values[:, None], "en", resamples=50_000)[:, 0] / (windows - 1)
        assert np.var(resampled) == pytest.approx(np.var(values, ddof=1) / windows, rel=0.05)


def test_columns_share_their_windows_and_languages_do_not() -> None:
    values = np.arange(12.0)
    resampled = resampled_sums(np.stack([values, 2 * values + 1], 1), "en")
    assert np.array_equal(resampled[:, 1], 2 * resampled[:, 0] + 11)
    assert np.array_equal(resampled_sums(values[:, None], "en")[:, 0], resampled[:, 0])
    other = resampled_sums(values[:, None], "fr")[:, 0]
    assert abs(np.corrcoef(other, resampled[:, 0])[0, 1]) < 0.1


def test_many_windows_are_resampled_in_blocks() -> None:
    windows = MAX_COUNTS // 700  # three blocks, the last of them shorter
    resampled = resampled_sums(np.ones((windows, 1)), "en")
    assert resampled.shape == (RESAMPLES, 1)
    assert (resampled == windows - 1).all()


def test_interval_leaves_the_same_share_on_both_sides() -> None:
    assert estimate(3.0, np.arange(101.0), 0.9) == (3.0, pytest.approx(5.0), pytest.approx(95.0))
    assert estimate(3.0, np.array([1.0, np.nan]), 0.9) == Estimate(3.0, None, None)


def test_interval_of_a_ratio_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = []
    for trial in range(300):
        tokens = random.integers(400, 512, size=24).astype(float)
        nll = tokens * random.gamma(4.0, 0.75, size=24)  # skewed, of mean 3
        sums = resampled_sums(np.stack([nll, tokens], 1), str(trial))
        found = estimate(nll.sum() / tokens.sum(), sums[:, 0] / sums[:, 1], 0.95)
        assert found.low is not None
        assert found.high is not None
        covered.append(found.low < 3.0 < found.high)
    assert 0.91 < np.mean(covered) < 0.98
