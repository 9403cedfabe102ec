"""Evaluating and comparing in one call."""

from typing import Any

import pytest

from optimum_mwanda import PerplexityReport, evaluate_languages
from optimum_mwanda.experiments.side_by_side import compare
from tests.conftest import make_model, make_rows
from tests.record.examples import make_record

ROWS = make_rows("en fr", rows=3, length=40)
OPTIONS: dict[str, Any] = {"sequence_length": 8, "progress": False}


@pytest.fixture(scope="module")
def reports() -> list[PerplexityReport]:
    return [evaluate_languages(make_model(seed=seed), None, ROWS, **OPTIONS) for seed in range(3)]


def test_models_and_their_reports_give_the_same_comparison(reports: list[PerplexityReport]) -> None:
    dense, *pruned = reports
    expected = compare(dense, {"a": pruned[0], "b": pruned[1]}, seen=["en"], confidence=0.9)
    assert expected.pruned == {"a": pruned[0], "b": pruned[1]}
    assert (expected.seen, expected.confidence) == (["en"], 0.9)
    models = {"a": make_model(seed=1), "b": pruned[1]}
    assert compare(make_model(), models, dataset=ROWS, seen=["en"], confidence=0.9, **OPTIONS) == expected


def test_models_are_measured_in_the_windows_of_a_report(reports: list[PerplexityReport]) -> None:
    comparison = compare(reports[0], make_model(seed=1), dataset=ROWS, progress=False)
    assert comparison.pruned == {"pruned": reports[1]}
    assert comparison.change("pruned").summary["mean"].low is not None


def test_models_are_measured_on_the_text_of_a_report() -> None:
    few = {"languages": ["fr"], "tokens_per_language": 32, "seed": 3}
    dense = evaluate_languages(make_model(), None, ROWS, **few, **OPTIONS)
    comparison = compare(dense, make_model(seed=1), dataset=ROWS, progress=False)
    assert comparison.pruned["pruned"] == evaluate_languages(make_model(seed=1), None, ROWS, **few, **OPTIONS)


def test_some_languages_of_a_report_can_be_compared(reports: list[PerplexityReport]) -> None:
    whole = compare(reports[0], reports[1])
    part = compare(reports[0], {"report": reports[1], "model": make_model(seed=1)}, dataset=ROWS, languages=["fr"])
    for name in ("report", "model"):
        assert part.pruned[name].scores == {"fr": reports[1].scores["fr"]}
    assert part.change("report").languages["fr"] == whole.change("pruned").languages["fr"]
    with pytest.raises(ValueError, match="covers en, fr, not sw"):
        compare(reports[0], make_model(), dataset=ROWS, languages=["fr", "sw"])


def test_equally_long_text_is_not_taken_for_the_same(reports: list[PerplexityReport]) -> None:
    rows = make_rows("en fr", rows=3, length=40, seed=1)
    other = evaluate_languages(make_model(), None, rows, **OPTIONS)
    assert other.scores["en"].windows.tokens == reports[0].scores["en"].windows.tokens  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="different text"):
        compare(reports[0], other)


def test_languages_of_the_records_are_the_seen_ones_if_they_agree() -> None:
    dense, one, other = (make_model(seed=seed) for seed in range(3))
    one.config.mwanda_config = make_record() | {"languages": {"en": {"tokens": 1, "weight": 1.0}}}
    assert compare(dense, one, dataset=ROWS, **OPTIONS).seen == ["en"]
    other.config.mwanda_config = make_record() | {"languages": {"fr": {"tokens": 1, "weight": 1.0}}}
    assert compare(dense, {"a": one, "b": other}, dataset=ROWS, **OPTIONS).seen is None
    assert compare(dense, one, dataset=ROWS, seen=["fr"], **OPTIONS).seen == ["fr"]


def test_record_that_cannot_be_read_is_refused_unless_the_languages_are_given(reports: list[PerplexityReport]) -> None:
    model = make_model(seed=1)
    model.config.mwanda_config = {"schema": 99}
    with pytest.raises(ValueError, match="upgrade optimum-mwanda"):
        compare(reports[0], model, dataset=ROWS, **OPTIONS)
    assert compare(reports[0], model, dataset=ROWS, seen=["en"], **OPTIONS).seen == ["en"]


def test_model_without_text_is_refused(reports: list[PerplexityReport]) -> None:
    with pytest.raises(ValueError, match="'pruned' is a model, but there is no text to evaluate it on: pass dataset="):
        compare(reports[0], make_model())


def test_what_is_no_model_and_no_report_is_refused(reports: list[PerplexityReport]) -> None:
    with pytest.raises(TypeError, match="'mine' is a str: give a model or a PerplexityReport"):
        compare(reports[0], {"mine": "path/of/a/model"}, dataset=ROWS)  # type: ignore[dict-item]


def test_report_on_other_text_is_refused_before_anything_is_measured(reports: list[PerplexityReport]) -> None:
    model = make_model()
    model.forward = None  # type: ignore[assignment]  # that would fail if it were called
    with pytest.raises(ValueError, match="different text"):
        compare(reports[0], model, dataset=ROWS, tokens_per_language=64, progress=False)


def test_no_language_is_refused(reports: list[PerplexityReport]) -> None:
    with pytest.raises(ValueError, match="names no language"):
        compare(reports[0], reports[1], languages=[])
