"""Changes and their paired intervals, by hand and by formula."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_mwanda.evaluation.changes import measure_change, summary_weights
from optimum_mwanda.evaluation.scores import LanguageScore, Windows

Array = np.ndarray


def score(language: str, *nll: float) -> LanguageScore:
    """Windows of ten tokens and twenty bytes with these losses per token."""
    count = len(nll)
    windows = Windows(tuple(10 * each for each in nll), (10,) * count, (20,) * count)
    return LanguageScore(language, 10 * count, sum(nll) / count, 20 * count, windows)


def scores(**nll: tuple[float, ...]) -> dict[str, LanguageScore]:
    return {language: score(language, *each) for language, each in nll.items()}


DENSE = scores(en=(1.0, 3.0), sw=(2.0, 6.0), yo=(4.0, 4.0))
PRUNED = scores(en=(1.5, 3.1), sw=(3.0, 9.0), yo=(4.4, 4.4))


def test_interval_of_two_windows_spans_their_increases() -> None:
    change = measure_change(DENSE, PRUNED, None, ["en"], "log_perplexity", 0.95)
    assert change.languages["en"] == pytest.approx((0.3, 0.1, 0.5))
    assert change.languages["sw"] == pytest.approx((2.0, 1.0, 3.0))
    assert change.languages["yo"] == pytest.approx((0.4, 0.4, 0.4))


def test_bits_per_byte_increase_is_a_fraction_of_the_dense_model() -> None:
    change = measure_change(DENSE, PRUNED, None, ["en"], "bits_per_byte", 0.95)
    assert change.languages["en"] == pytest.approx((4.6 / 4 - 1, 3.1 / 3 - 1, 0.5))
    assert change.languages["sw"] == pytest.approx((0.5, 0.5, 0.5))  # the same fraction in both windows


def test_summaries_have_values_and_intervals_of_their_languages() -> None:
    summary = measure_change(DENSE, PRUNED, None, ["en"], "log_perplexity", 0.95).summary
    assert {key: each.value for key, each in summary.items()} == pytest.approx(
        {
            "mean": 0.9,
            "seen": 0.3,
            "unseen": 1.2,
            "gap": 0.9,
            "worst": 2.0,
            "best": 0.3,
            "range": 1.7,
            "deviation": np.std([0.3, 2.0, 0.4]),
        }
    )
    assert summary["seen"] == pytest.approx((0.3, 0.1, 0.5))
    assert summary["worst"] == pytest.approx((2.0, 1.0, 3.0))
    assert summary["unseen"] == pytest.approx((1.2, 0.7, 1.7))
    # English is at 0.1 or 0.5 and Swahili at 1 or 3, each half of the time: a quarter has both extremes.
    assert summary["mean"] == pytest.approx((0.9, (0.1 + 1.0 + 0.4) / 3, (0.5 + 3.0 + 0.4) / 3))


def test_summaries_over_no_language_are_missing() -> None:
    assert "seen" not in measure_change(DENSE, PRUNED, None, None, "log_perplexity", 0.95).summary
    assert {"unseen", "gap"}.isdisjoint(
        measure_change(DENSE, PRUNED, None, list(DENSE), "log_perplexity", 0.95).summary
    )


def test_what_dense_and_pruned_have_in_common_cancels() -> None:
    random = np.random.default_rng(0)
    hard = random.normal(3.0, 1.0, size=30)  # some windows are hard for every model
    dense = {"en": score("en", *hard)}
    pruned = {"en": score("en", *(hard + 0.2 + random.normal(0, 0.05, size=30)))}
    found = measure_change(dense, pruned, None, None, "log_perplexity", 0.95).languages["en"]
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.2 < found.high
    errors = [dense["en"].standard_errors["nll"], pruned["en"].standard_errors["nll"]]
    unpaired = 2 * 1.96 * float(np.hypot(*errors))  # type: ignore[arg-type]
    assert found.high - found.low < unpaired / 10


def test_two_pruned_models_are_paired_with_each_other() -> None:
    random = np.random.default_rng(1)
    dense = {"en": score("en", *random.normal(3.0, 1.0, size=20)), "sw": score("sw", *random.normal(4.0, 1.0, size=20))}

    def prune(noise: dict[str, Array], more: float) -> dict[str, LanguageScore]:
        losses = {name: np.array(dense[name].windows.nll) / 10 for name in dense}  # type: ignore[union-attr]
        return {name: score(name, *(losses[name] + noise[name] + more)) for name in dense}

    noise = {name: random.normal(0.5, 0.3, size=20) for name in dense}
    one, other = prune(noise, 0.0), prune(noise, 0.1)
    found = measure_change(dense, one, other, ["en"], "log_perplexity", 0.95)
    for each in (found.languages["en"], found.languages["sw"], found.summary["mean"], found.summary["worst"]):
        assert each == pytest.approx((-0.1, -0.1, -0.1))
    for key in ("gap", "deviation", "range"):
        assert found.summary[key] == pytest.approx((0.0, 0.0, 0.0), abs=1e-9)


def test_each_model_has_its_own_worst_language() -> None:
    other = scores(en=(1.5, 3.1), sw=(2.2, 6.2), yo=(5.0, 5.0))
    worst = measure_change(DENSE, PRUNED, other, None, "log_perplexity", 0.95).summary["worst"]
    assert worst == pytest.approx((2.0 - 1.0, 1.0 - 1.0, 3.0 - 1.0))


def test_language_without_windows_takes_only_its_own_intervals_away() -> None:
    dense = {**DENSE, "yo": LanguageScore("yo", 20, 4.0)}
    change = measure_change(dense, PRUNED, None, ["en", "sw"], "log_perplexity", 0.95)
    assert change.languages["yo"] == (pytest.approx(0.4), None, None)
    assert change.summary["mean"] == (pytest.approx(0.9), None, None)
    assert change.summary["seen"].low is not None
    assert change.summary["worst"].low is not None


def test_variance_of_a_mean_over_many_languages_with_few_windows_is_not_too_small() -> None:
    random = np.random.default_rng(2)
    dense, pruned = {}, {}
    for index in range(100):
        losses, increases = random.normal(3.0, 0.5, size=2), random.normal(0.5, 0.2, size=2)
        dense[f"l{index}"] = score(f"l{index}", *losses)
        pruned[f"l{index}"] = score(f"l{index}", *(losses + increases))
    mean = measure_change(dense, pruned, None, None, "log_perplexity", 0.95).summary["mean"]
    assert mean.low is not None
    assert mean.high is not None
    differences = [
        np.diff(np.subtract(pruned[name].windows.nll, dense[name].windows.nll))[0] / 10  # type: ignore[union-attr]
        for name in dense
    ]
    error = np.sqrt(np.sum(np.square(differences)) / 4) / 100  # s² / 2 of two values is a quarter of their distance²
    assert (mean.high - mean.low) / 2 == pytest.approx(1.96 * error, rel=0.06)


@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=20).map(np.array),
    st.data(),
)
def test_weights_give_the_summaries(increases: Array, data: st.DataObject) -> None:
    seen = data.draw(st.lists(st.booleans(), min_size=len(increases), max_size=len(increases)))
    weights = summary_weights(increases, seen)
    expected = {"mean": increases.mean(), "worst": increases.max()}
    if len(increases) > 1:
        expected["best"] = increases.min()
        expected["range"] = increases.max() - increases.min()
        expected["deviation"] = increases.std()
    if any(seen):
        expected["seen"] = increases[np.array(seen)].mean()
    if not all(seen):
        expected["unseen"] = increases[~np.array(seen)].mean()
    if any(seen) and not all(seen):
        expected["gap"] = expected["unseen"] - expected["seen"]
    assert {key: float(row @ increases) for key, row in weights.items()} == pytest.approx(expected, abs=1e-9)


def test_table_says_on_which_side_of_zero_an_interval_lies() -> None:
    other = scores(en=(1.4, 3.2), sw=(3.5, 9.1), yo=(4.1, 4.1))
    table = measure_change(DENSE, PRUNED, other, None, "log_perplexity", 0.95).to_markdown()
    cells = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in table.splitlines()
    }
    assert cells["log perplexity"] == ["change", "low", "high", "interval"]
    assert cells["en"] == ["+0.0000", "-0.1000", "+0.1000", "around 0"]
    assert cells["sw"] == ["-0.3000", "-0.5000", "-0.1000", "below 0"]
    assert cells["yo"][3] == "above 0"
