"""Intervals over seeds, against the table of Student's t."""

import pytest

from optimum_mwanda.experiments.grid.intervals import mean_interval, student_quantile


@pytest.mark.parametrize(
    ("confidence", "degrees", "expected"),
    [
        (0.95, 1, 12.706),
        (0.95, 2, 4.303),
        (0.95, 3, 3.182),
        (0.95, 4, 2.776),
        (0.99, 5, 4.032),
        (0.9, 10, 1.812),
        (0.95, 1000, 1.962),
    ],
)
def test_quantiles_are_those_of_the_table(confidence: float, degrees: int, expected: float) -> None:
    assert student_quantile(confidence, degrees) == pytest.approx(expected, abs=6e-4)


def test_interval_of_three_seeds() -> None:
    # mean 2, standard deviation 1: 2 ± 4.3027 / sqrt(3)
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - 2.4841, 2 + 2.4841), abs=1e-4)


def test_one_seed_has_no_interval_and_equal_seeds_an_empty_one() -> None:
    assert mean_interval([0.5]) == (0.5, None, None)
    assert mean_interval([0.5, 0.5]) == (0.5, 0.5, 0.5)
