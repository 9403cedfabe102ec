import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimum_mwanda.pruning.spectrum import power_law_exponent
from tests.reference.allocations import reference_power_law_exponent


def with_eigenvalues(*eigenvalues: float) -> torch.Tensor:
    """A matrix `(out, in)` whose `WᵀW` has these eigenvalues and, as `in` is larger, zeros."""
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(len(eigenvalues) + 2,) * 2))
    return torch.from_numpy(np.diag(np.sqrt(eigenvalues)) @ rotation[: len(eigenvalues)])


def test_the_exponent_of_two_eigenvalues_by_hand() -> None:
    # one tail only: α = 1 + 2 / (ln 1 + ln e)
    assert power_law_exponent(with_eigenvalues(1, math.e)) == pytest.approx(3)


def test_the_exponent_by_hand() -> None:
    # All of 100 bins over log10 1 … log10 e² hold one or none, and the first counts: the tail starts at 1, as e > 1.5.
    assert power_law_exponent(with_eigenvalues(1, math.e, math.e**2)) == pytest.approx(1 + 3 / (1 + 2))


def test_of_the_tails_that_start_near_the_peak_the_one_that_fits_best_is_chosen() -> None:
    # The peak is at e, where there are two; 1 lies too far below it. The tail from the first e on is e, e, e³ with
    # α = 1 + 3/2; the fitted shares 0, 0, 1 − e^−3 are 1/3 off 0, 1/3, 2/3. From the second on: α = 1 + 2/2, and
    # 0, 1 − e^−2 is 0.365 off 0, 1/2.
    assert power_law_exponent(with_eigenvalues(1, math.e, math.e * (1 + 1e-9), math.e**3)) == pytest.approx(2.5)


def test_a_peak_with_nothing_above_it_leaves_the_whole_spectrum() -> None:
    # The peak is at e², the largest: α = 1 + 3 / (2 + 2)
    assert power_law_exponent(with_eigenvalues(1, math.e**2, math.e**2)) == pytest.approx(1.75)


@given(st.integers(2, 12), st.integers(2, 12), st.floats(0.1, 3), st.integers(0, 10**6))
@settings(max_examples=60)
def test_the_exponent_equals_the_reference(out: int, inputs: int, tail: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    weight = random.normal(size=(out, inputs)) * random.pareto(tail + 1, size=(out, 1))
    assert power_law_exponent(torch.from_numpy(weight)) == pytest.approx(reference_power_law_exponent(weight), rel=1e-5)


@given(st.integers(2, 10), st.floats(1e-3, 1e3), st.integers(0, 10**6))
@settings(max_examples=30)
def test_scale_and_orientation_do_not_matter(size: int, scale: float, seed: int) -> None:
    weight = torch.from_numpy(np.random.default_rng(seed).normal(size=(size, size + 3)))
    expected = power_law_exponent(weight)
    assert power_law_exponent(weight * scale) == pytest.approx(expected, rel=1e-4)
    assert power_law_exponent(weight.T) == pytest.approx(expected, rel=1e-9)


def test_the_exponent_of_a_power_law_is_recovered() -> None:
    # Eigenvalues at the quantiles of p(λ) ∝ λ^−3.5.
    quantiles = (np.arange(200) + 0.5) / 200
    assert power_law_exponent(with_eigenvalues(*(1 - quantiles) ** (-1 / 2.5))) == pytest.approx(3.5, rel=0.05)


def test_a_heavier_tail_has_a_lower_exponent() -> None:
    light, heavy = (with_eigenvalues(*np.linspace(1, 10, 40) ** power) for power in (1, 3))
    assert power_law_exponent(heavy) < power_law_exponent(light)


@pytest.mark.parametrize(
    "weight",
    [torch.zeros(3, 4), torch.ones(3, 4), torch.eye(3)],
    ids=["zeros", "one singular value", "equal singular values"],
)
def test_a_weight_without_a_tail_is_refused(weight: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"shape \(3, .\) has no tail to fit"):
        power_law_exponent(weight)


def test_half_precision_weights_are_read() -> None:
    weight = torch.from_numpy(np.random.default_rng(1).normal(size=(20, 30))).bfloat16()
    assert power_law_exponent(weight) == power_law_exponent(weight.double())
