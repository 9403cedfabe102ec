"""Reports and comparisons, computed by hand."""

import json
import math
import statistics

import pytest

from optimum_mwanda import PerplexityComparison, PerplexityReport
from optimum_mwanda.evaluation.scores import LanguageScore, Windows


def report(bytes: int | None = 100, **nll: float) -> PerplexityReport:
    scores = {language: LanguageScore(language, 50, value, bytes) for language, value in sorted(nll.items())}
    return PerplexityReport(scores, "model", 64)


def with_windows(*losses: float, language: str = "en") -> PerplexityReport:
    """A report of one language, each of whose windows has ten tokens and twenty bytes."""
    count = len(losses)
    windows = Windows(tuple(10 * each for each in losses), (10,) * count, (20,) * count)
    score = LanguageScore(language, 10 * count, sum(losses) / count, 20 * count, windows)
    return PerplexityReport({language: score}, "model", 11)


DENSE = report(en=1.0, fr=2.0, sw=3.0, yo=3.0)
PRUNED = report(en=1.1, fr=2.3, sw=4.0, yo=3.2)


def test_score_derives_perplexity_and_bits_per_byte() -> None:
    score = report(en=2.0).scores["en"]
    assert score.perplexity == pytest.approx(math.e**2)
    assert score.bits_per_byte == pytest.approx(2.0 * 50 / 100 / math.log(2))
    assert report(bytes=None, en=2.0).scores["en"].bits_per_byte is None


@pytest.mark.parametrize("reports", [(DENSE, PRUNED), (with_windows(2.0, 3.0), with_windows(2.5, 3.1))])
def test_report_survives_json(reports: tuple[PerplexityReport, PerplexityReport]) -> None:
    dense, pruned = reports
    assert PerplexityReport.from_dict(json.loads(pruned.to_json())) == pruned
    comparison = PerplexityComparison(dense, {"pruned": pruned}, seen=["en", "fr"], confidence=0.9)
    assert PerplexityComparison.from_dict(json.loads(comparison.to_json())) == comparison
    assert json.loads(comparison.to_json()) == json.loads(json.dumps(comparison.to_dict()))


def test_older_comparison_can_be_read() -> None:
    values = PerplexityComparison(DENSE, {"pruned": PRUNED}).to_dict()
    del values["confidence"], values["pruned"]["pruned"]["change"]
    for each in (values["dense"], values["pruned"]["pruned"]):
        for entry in each["languages"]:
            del entry["windows"], entry["standard_errors"]
    assert PerplexityComparison.from_dict(values) == PerplexityComparison(DENSE, {"pruned": PRUNED})


def test_windows_take_one_line_of_json_each() -> None:
    lines = with_windows(*[2.0] * 50).to_json().splitlines()
    assert sum("20.0" in line for line in lines) == 1
    assert max(len(line) for line in lines) < 500


def test_json_leaves_strings_that_look_like_lists_alone() -> None:
    odd = PerplexityReport({"[\n1,\n2]": LanguageScore("[\n1,\n2]", 50, 1.0)}, "[\n  3\n]", 64)
    assert PerplexityReport.from_dict(json.loads(odd.to_json())) == odd


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
    assert [line[0] for line in lines[6:]] == [
        f"**{name}**" for name in ("mean", "seen", "unseen", "worst", "best", "spread")
    ]
    assert lines[8][4] == f"{math.exp(0.6):.3f}"
    assert lines[9][3:] == ["sw", "2.718", "fr", "1.105"]
    assert lines[10][3:] == ["en", "1.105", "en", "1.000"]
    assert lines[11][4] == f"{math.exp(statistics.pstdev([0.1, 0.3, 1.0, 0.2])):.3f}"


def test_table_in_bits_per_byte_shows_percent() -> None:
    table = PerplexityComparison(DENSE, {"a": PRUNED}, seen=["en"]).to_markdown("bits_per_byte")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert lines[0] == ["language", "calibrated", "dense", "a", "%"]
    assert lines[4] == ["sw", "no", "2.1640", "2.8854", "+33.33"]
    assert lines[6][4] == f"{100 * (0.1 + 0.3 / 2 + 1 / 3 + 0.2 / 3) / 4:+.2f}"
    assert lines[9][3:] == ["sw", "+33.33"]


def test_tables_show_errors_and_intervals_where_windows_are_known() -> None:
    dense, pruned = with_windows(2.0, 3.0), with_windows(2.1, 3.5)
    assert f"2.5000 ± {dense.scores['en'].standard_errors['nll']:.4f} |" in dense.to_markdown()
    comparison = PerplexityComparison(dense, {"pruned": pruned})
    low, mean, high = (f"{math.exp(each):.3f}" for each in (0.1, 0.3, 0.5))
    assert f"| en        | 12.18 |  16.44 | {mean} [{low}, {high}] |" in comparison.to_markdown()
    assert "| +12.00 [+5.00, +16.67] |" in comparison.to_markdown("bits_per_byte")
    assert "±" not in DENSE.to_markdown()


def test_confidence_sets_the_width_of_intervals() -> None:
    losses = [0.1 * each for each in range(20)]
    dense, pruned = with_windows(*[2.0] * 20), with_windows(*(2.0 + each for each in losses))
    widths = []
    for confidence in (0.5, 0.95, 0.999):
        change = PerplexityComparison(dense, {"pruned": pruned}, confidence=confidence).change("pruned")
        widths.append(change.languages["en"][2] - change.languages["en"][1])  # type: ignore[operator]
    assert widths == sorted(widths)
    # 0.67 and 1.96 standard errors of a mean of 20 evenly spaced values, on both sides
    error = statistics.stdev(losses) / math.sqrt(20)
    assert widths[:2] == pytest.approx([2 * 0.6745 * error, 2 * 1.96 * error], rel=0.08)


def test_bits_per_byte_increase_is_known_without_bytes() -> None:
    comparison = PerplexityComparison(DENSE, {"pruned": PRUNED})
    assert comparison.bits_per_byte_increase("pruned", "sw") == pytest.approx(1 / 3)
    bits = [report.scores["sw"].bits_per_byte or 0.0 for report in (DENSE, PRUNED)]
    assert comparison.bits_per_byte_increase("pruned", "sw") == pytest.approx(bits[1] / bits[0] - 1)
    tokenised = PerplexityComparison(report(bytes=None, sw=3.0), {"pruned": report(bytes=None, sw=4.0)})
    assert tokenised.bits_per_byte_increase("pruned", "sw") == pytest.approx(1 / 3)


def test_pruned_models_are_compared_with_each_other() -> None:
    better = report(en=1.0, fr=2.1, sw=3.1, yo=3.1)
    comparison = PerplexityComparison(DENSE, {"a": PRUNED, "b": better}, seen=["en", "fr"])
    change = comparison.change("b", against="a")
    assert change.languages["sw"].value == pytest.approx(3.1 - 4.0)
    assert change.summary["unseen"].value == pytest.approx(0.1 - 0.6)
    assert comparison.change("a", against="a").summary["mean"].value == 0
    with pytest.raises(ValueError, match="metric='ppl' is not allowed: give log_perplexity or bits_per_byte"):
        comparison.change("a", metric="ppl")  # type: ignore[arg-type]


def test_report_becomes_a_data_frame_and_a_dataset() -> None:
    found = with_windows(2.0, 3.0)
    frame = found.to_pandas()
    assert frame.shape == (1, 9)
    assert frame.loc[0, ["language", "tokens", "bytes"]].tolist() == ["en", 20, 40]
    assert frame.loc[0, "nll_standard_error"] == pytest.approx(0.5, rel=1e-3)
    assert found.to_dataset()[0] == frame.to_dict("records")[0]


def test_comparison_becomes_a_data_frame_and_a_dataset() -> None:
    better = report(en=1.0, fr=2.1, sw=3.1, yo=3.1)
    comparison = PerplexityComparison(DENSE, {"a": PRUNED, "b": better}, seen=["en", "fr"])
    frame = comparison.to_pandas().set_index(["model", "language"])
    assert len(frame) == 8
    row = frame.loc[("b", "sw")]
    assert not row["calibrated"]
    assert row["dense_nll"] == 3.0
    assert row["log_perplexity_increase"] == pytest.approx(0.1)
    assert row["bits_per_byte_increase"] == pytest.approx(0.1 / 3)
    assert comparison.to_dataset().filter(lambda each: each["model"] == "a")["language"][:] == ["en", "fr", "sw", "yo"]
    narrow = PerplexityComparison(with_windows(2.0, 3.0), {"a": with_windows(2.1, 3.5)}).to_pandas()
    ends = narrow.loc[0, ["log_perplexity_increase_low", "log_perplexity_increase_high"]].tolist()
    assert ends == pytest.approx([0.1, 0.5])


@pytest.mark.parametrize(
    ("dense", "pruned"),
    [
        (report(en=1.0), report(bytes=101, en=1.0)),
        (with_windows(2.0, 3.0), with_windows(2.0, 3.0, 4.0)),
    ],
)
def test_comparison_of_different_text_is_refused(dense: PerplexityReport, pruned: PerplexityReport) -> None:
    with pytest.raises(ValueError, match="different text or windows in 'en': evaluate both with the same dataset"):
        PerplexityComparison(dense, {"pruned": pruned})


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, math.nan])
def test_impossible_confidence_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        PerplexityComparison(DENSE, {}, confidence=confidence)


def test_comparison_of_different_languages_is_refused() -> None:
    with pytest.raises(ValueError, match="evaluate both on the same dataset"):
        PerplexityComparison(DENSE, {"pruned": report(en=1.0)})


def test_enormous_loss_stays_a_number() -> None:
    table = PerplexityComparison(report(en=1.0), {"pruned": report(en=5000.0)}, seen=["en"]).to_markdown()
    assert "inf" not in table


def test_share_of_unknown_tokens_is_shown_where_there_are_any() -> None:
    known, hardly = LanguageScore("en", 10, 1.0, unknown=0), LanguageScore("th", 10, 1.0, unknown=9)
    table = PerplexityReport({"en": known, "th": hardly}, "model", 8).to_markdown()
    assert [line.split("|")[-2].strip() for line in table.splitlines()][0::2] == ["unknown", "0.0 %"]
    assert "90.0 %" in table
    assert "unknown" not in PerplexityReport({"en": known}, "model", 8).to_markdown()


def test_printed_results_are_tables() -> None:
    comparison = PerplexityComparison(DENSE, {"a": PRUNED})
    assert str(DENSE) == DENSE.to_markdown()
    assert str(comparison) == comparison.to_markdown()
    assert str(comparison.change("a")) == comparison.change("a").to_markdown()


def test_missing_interval_says_why() -> None:
    one = LanguageScore("sw", 8, 2.0, windows=Windows((16.0,), (8,)))
    two = LanguageScore("en", 8, 2.0, windows=Windows((8.0, 8.0), (4, 4)))
    report = PerplexityReport({"en": two, "sw": one}, "m", 8)
    for table in (report.to_markdown(), PerplexityComparison(report, {"a": report}).to_markdown()):
        assert table.splitlines()[-1].startswith("No interval for sw: the text fills one window")
    assert "No interval" not in PerplexityReport({"en": two}, "m", 8).to_markdown()
