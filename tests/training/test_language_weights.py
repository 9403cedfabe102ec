"""How much languages weigh, computed by hand."""

import pytest

from optimum_mwanda import PerplexityComparison, need_weights, temperature_weights

from ..evaluation.test_report import report

DENSE = report(en=1.0, fr=2.0, sw=3.0, yo=3.0)
PRUNED = report(en=1.1, fr=2.4, sw=4.6, yo=2.9)
COMPARISON = PerplexityComparison(DENSE, {"pruned": PRUNED})


def test_sizes_to_the_power_of_one_over_the_temperature() -> None:
    # The roots are 10, 2 and 3, with a mean of 5.
    assert temperature_weights({"en": 100, "sw": 4, "yo": 9}, 2) == pytest.approx({"en": 2.0, "sw": 0.4, "yo": 0.6})
    assert temperature_weights({"en": 3, "sw": 1}, 1) == pytest.approx({"en": 1.5, "sw": 0.5})


def test_temperatures_near_zero_and_huge_sizes_are_no_trouble() -> None:
    assert temperature_weights({"en": 1e15, "sw": 1e12}, 0.01) == pytest.approx({"en": 2.0, "sw": 0.0})


def test_need_follows_the_increase_of_the_log_perplexity() -> None:
    # Increases 0.1, 0.4, 1.6 and -0.1; what lies below a tenth of the worst counts as 0.16: 0.16, 0.4, 1.6, 0.16.
    mean = (0.16 + 0.4 + 1.6 + 0.16) / 4
    expected = {"en": 0.16 / mean, "fr": 0.4 / mean, "sw": 1.6 / mean, "yo": 0.16 / mean}
    assert need_weights(COMPARISON, temperature=1) == pytest.approx(expected)


def test_temperature_softens_need() -> None:
    # Roots of 0.16, 0.4, 1.6 and 0.16.
    mean = (0.4 + 0.4**0.5 + 1.6**0.5 + 0.4) / 4
    weights = need_weights(COMPARISON, "pruned", 2)
    assert weights == pytest.approx({"en": 0.4 / mean, "fr": 0.4**0.5 / mean, "sw": 1.6**0.5 / mean, "yo": 0.4 / mean})
    assert max(weights, key=weights.__getitem__) == "sw"


def test_all_weigh_the_same_if_none_lost() -> None:
    assert need_weights(PerplexityComparison(DENSE, {"same": DENSE})) == dict.fromkeys(DENSE.scores, 1.0)


def test_the_pruned_model_must_be_named_if_there_are_several() -> None:
    two = PerplexityComparison(DENSE, {"a": PRUNED, "b": DENSE})
    assert need_weights(two, "a") == need_weights(COMPARISON)
    with pytest.raises(ValueError, match=r"more than one pruned model: name one, .* It has 'a', 'b'"):
        need_weights(two)
    with pytest.raises(ValueError, match="no pruned model 'c': name one"):
        need_weights(two, "c")


@pytest.mark.parametrize("temperature", [0, -1, "2"])
def test_wrong_temperatures_and_sizes_are_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=f"temperature={temperature!r} is not allowed: give a number above 0"):
        need_weights(COMPARISON, temperature=temperature)
    with pytest.raises(ValueError, match="The size of language 'sw'=0 is not allowed"):
        temperature_weights({"en": 1, "sw": 0})
