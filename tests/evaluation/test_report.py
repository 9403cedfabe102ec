"""Reports and comparisons, computed by hand."""

import json
import math

import pytest

from optimum_mwanda import PerplexityComparison, PerplexityReport
from optimum_mwanda.evaluation.report import LanguageScore


def report(bytes: int | None = 100, **nll: float) -> PerplexityReport:
    scores = {language: LanguageScore(language, 50, value, bytes) for language, value in sorted(nll.items())}
    return PerplexityReport(scores, "model", 64)


DENSE = report(en=1.0, fr=2.0, sw=3.0, yo=3.0)
PRUNED = report(en=1.1, fr=2.3, sw=4.0, yo=3.2)


def test_score_derives_perplexity_and_bits_per_byte() -> None:
    score = report(en=2.0).scores["en"]
    assert score.perplexity == pytest.approx(math.e**2)
    assert score.bits_per_byte == pytest.approx(2.0 * 50 / 100 / math.log(2))
    assert report(bytes=None, en=2.0).scores["en"].bits_per_byte is None


def test_report_survives_json() -> None:
    assert PerplexityReport.from_dict(json.loads(PRUNED.to_json())) == PRUNED
    comparison = PerplexityComparison(DENSE, {"pruned": PRUNED}, seen=["en", "fr"])
    assert PerplexityComparison.from_dict(json.loads(json.dumps(comparison.to_dict()))) == comparison


def test_summary_separates_seen_from_unseen_and_names_the_worst() -> None:
    comparison = PerplexityComparison(DENSE, {"pruned": PRUNED}, seen=["en", "fr"])
    assert comparison.unseen == ("sw", "yo")
    assert comparison.worst("pruned") == "sw"
    assert comparison.summary("pruned") == pytest.approx(
        {"mean": 1.6 / 4, "seen": 0.4 / 2, "unseen": 1.2 / 2, "worst": 1.0}
    )


def test_without_calibration_languages_there_is_no_seen_and_unseen() -> None:
    summary = PerplexityComparison(DENSE, {"pruned": PRUNED}).summary("pruned")
    assert summary["seen"] is None
    assert summary["unseen"] is None


def test_table_shows_factors_and_geometric_means() -> None:
    better = report(en=1.0, fr=2.1, sw=3.1, yo=3.1)
    table = PerplexityComparison(DENSE, {"a": PRUNED, "b": better}, seen=["en", "fr"]).to_markdown()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert lines[0] == ["language", "calibrated", "dense", "a", "×", "b", "×"]
    assert lines[4] == ["sw", "no", "20.09", "54.60", "2.718", "22.20", "1.105"]
    assert [line[0] for line in lines[6:]] == ["**mean**", "**seen**", "**unseen**", "**worst**"]
    assert lines[8][4] == f"{math.exp(0.6):.3f}"
    assert lines[9][3:] == ["sw", "2.718", "fr", "1.105"]


def test_comparison_of_different_languages_is_refused() -> None:
    with pytest.raises(ValueError, match="evaluate both on the same dataset"):
        PerplexityComparison(DENSE, {"pruned": report(en=1.0)})


def test_enormous_loss_stays_a_number() -> None:
    table = PerplexityComparison(report(en=1.0), {"pruned": report(en=5000.0)}, seen=["en"]).to_markdown()
    assert "inf" not in table
