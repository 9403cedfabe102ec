"""Weights follow losses, and the mean stays within its bound."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_mwanda.pruning.minimax import best_round, follow_losses

LOSSES = st.dictionaries(st.sampled_from("abcdef"), st.floats(0.01, 10), min_size=1)


def test_weights_grow_with_what_a_language_loses_beyond_the_mean() -> None:
    # The mean is 2: factors are exp(0.5), exp(-0.5) and, for a language that was not measured, 1.
    found = follow_losses({"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 3.0, "b": 1.0}, 1.0)
    total = math.exp(0.5) + math.exp(-0.5) + 1
    assert found == pytest.approx(
        {"a": 3 * math.exp(0.5) / total, "b": 3 * math.exp(-0.5) / total, "c": 3 / total}, abs=1e-6
    )
    assert follow_losses({"a": 2.0, "b": 0.5}, {"a": 1.0, "b": 1.0}, 1.0) == {"a": 1.6, "b": 0.4}


def test_one_language_does_not_take_the_weight_of_all_others() -> None:
    names = [str(number) for number in range(800)]
    found = follow_losses(dict.fromkeys(names, 1.0), dict.fromkeys(names, 0.0) | {"7": 1.0}, 1.0)
    assert found["7"] == pytest.approx(math.exp(4) * found["0"], rel=1e-4)


def test_where_nothing_is_lost_weights_stay() -> None:
    assert follow_losses({"a": 1.5, "b": 0.5}, {"a": 0.0, "b": 0.0}, 1.0) == {"a": 1.5, "b": 0.5}


@given(LOSSES, st.floats(0, 3))
def test_weights_have_a_mean_of_one_and_the_worst_language_gains_most(losses: dict[str, float], rate: float) -> None:
    found = follow_losses(dict.fromkeys("abcdef", 1.0), losses, rate)
    assert sum(found.values()) == pytest.approx(6, abs=1e-5)
    assert all(weight >= 0 for weight in found.values())
    assert found[max(losses, key=lambda name: losses[name])] == max(found.values())


def test_the_round_whose_worst_language_loses_least_wins_within_the_bound() -> None:
    equal, second = {"a": 2.0, "b": 1.0}, {"a": 1.8, "b": 1.25}
    third, fourth = {"a": 1.7, "b": 1.5}, {"a": 1.9, "b": 1.0}
    rounds = [equal, second, third, fourth]  # means of 1.5, 1.525, 1.6, 1.45
    assert best_round(rounds, 0.02) == 1
    assert best_round(rounds, 0.1) == 2
    assert best_round(rounds, 0.0) == 3
    assert best_round([equal, third], 0.02) == 0
    assert best_round([equal, equal], 0.02) == 0
