"""How the sparsity rises, by hand."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_mwanda.training.gradual import cubic_sparsity, pruning_steps


def test_sparsity_rises_along_a_cubic() -> None:
    # A quarter of the way leaves (3/4)^3 = 27/64 of the distance, half of it 1/8.
    assert cubic_sparsity(10, 10, 50, 0.64) == 0
    assert cubic_sparsity(20, 10, 50, 0.64) == pytest.approx(0.37)
    assert cubic_sparsity(30, 10, 50, 0.64, 0.16) == pytest.approx(0.58)
    assert cubic_sparsity(50, 10, 50, 0.64) == 0.64


def test_sparsity_is_the_initial_one_before_and_the_final_one_after() -> None:
    assert cubic_sparsity(0, 10, 50, 0.6, 0.2) == pytest.approx(0.2)
    assert cubic_sparsity(99, 10, 50, 0.6, 0.2) == 0.6


def test_a_schedule_of_one_step_is_a_jump() -> None:
    assert [cubic_sparsity(step, 5, 5, 0.5) for step in (4, 5, 6)] == [0, 0.5, 0.5]


@given(st.integers(0, 20), st.integers(1, 50), st.floats(0, 0.5), st.floats(0.5, 1))
def test_sparsity_never_falls_and_rises_ever_more_slowly(first: int, steps: int, initial: float, final: float) -> None:
    values = [cubic_sparsity(first + step, first, first + steps, final, initial) for step in range(steps + 1)]
    rises = [after - before for before, after in pairwise(values)]
    assert min(rises) >= -1e-12
    assert all(after <= before + 1e-12 for before, after in pairwise(rises))


def test_the_last_step_prunes_in_any_case() -> None:
    assert pruning_steps(0, 10, 4) == (0, 4, 8, 10)
    assert pruning_steps(2, 10, 4) == (2, 6, 10)
    assert pruning_steps(3, 3, 4) == (3,)
