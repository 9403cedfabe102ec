"""Results of lm-evaluation-harness, in the form of its files."""

import json
from pathlib import Path
from typing import Any

import pytest

from optimum_mwanda.evaluation.harness.comparison import HarnessComparison
from optimum_mwanda.evaluation.harness.results import HarnessReport, HarnessScore


def task(values: dict[str, Any], config: dict[str, Any], samples: int = 100, better: bool = True) -> dict[str, Any]:
    return {"values": values, "config": config, "samples": samples, "better": better}


TASKS = {
    "xcopa_sw": task(
        {"alias": "xcopa_sw", "sample_len": 100, "acc,none": 0.6, "acc_stderr,none": 0.05},
        {"dataset_path": "cambridgeltl/xcopa", "dataset_name": "sw", "test_split": "test"},
    ),
    "belebele_swh_Latn": task(
        {"acc,none": 0.3, "acc_stderr,none": 0.04, "acc_norm,none": 0.25, "acc_norm_stderr,none": "N/A"},
        {"dataset_path": "facebook/belebele", "test_split": "swh_Latn", "metadata": {"version": 0.0}},
    ),
    "xwinograd_jp": task(
        {"exact_match,strict": 0.5},
        {"dataset_path": "Muennighoff/xwinograd", "dataset_name": "jp", "test_split": "test"},
    ),
    "held_out_sw": task(
        {"bits_per_byte,none": 1.5, "bits_per_byte_stderr,none": "N/A"},
        {"dataset_path": "json", "test_split": "test", "metadata": {"benchmark": "held_out", "language": "sw"}},
        better=False,
    ),
    "wikitext": task({"word_perplexity,none": 20.0}, {"dataset_path": "wikitext", "test_split": "test"}, better=False),
}


def make_results(tasks: dict[str, Any], model: str = "dense", date: float = 0.0) -> dict[str, Any]:
    """The parts of a results file that are read; like the harness, it also lists a group, which is no task."""
    metrics = {name: {key.partition(",")[0] for key in each["values"] if "," in key} for name, each in tasks.items()}
    return {
        "results": {name: each["values"] for name, each in tasks.items()} | {"xcopa": {"acc,none": 0.6}},
        "configs": {name: each["config"] for name, each in tasks.items()},
        "n-samples": {name: {"original": 500, "effective": each["samples"]} for name, each in tasks.items()},
        "higher_is_better": {name: dict.fromkeys(metrics[name], each["better"]) for name, each in tasks.items()},
        "lm_eval_version": "0.4.13",
        "model_name": model,
        "date": date,
    }


def make_report(better: bool = True, samples: int = 100, stderr: float | None = 0.03, **values: float) -> HarnessReport:
    scores = [
        HarnessScore("xcopa", language, "acc", value, stderr, samples, better, "cambridgeltl/xcopa", "test")
        for language, value in values.items()
    ]
    return HarnessReport(tuple(scores), "model", "0.4.13")


def test_scores_are_told_apart_by_benchmark_metric_and_language() -> None:
    report = HarnessReport.from_results(make_results(TASKS))
    assert {key: (score.value, score.stderr) for key, score in report.by_key().items()} == {
        ("xcopa", "acc", "sw"): (0.6, 0.05),
        ("belebele", "acc", "swh_Latn"): (0.3, 0.04),
        ("belebele", "acc_norm", "swh_Latn"): (0.25, None),
        ("xwinograd", "exact_match (strict)", "ja"): (0.5, None),
        ("held_out", "bits_per_byte", "sw"): (1.5, None),
        ("wikitext", "word_perplexity", ""): (20.0, None),
    }
    assert report.languages == ("ja", "sw", "swh_Latn")
    assert report.by_key()["held_out", "bits_per_byte", "sw"].higher_is_better is False
    assert report.by_key()["xcopa", "acc", "sw"].samples == 100
    assert HarnessReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_files_of_a_model_are_joined_and_the_later_result_counts(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    later = TASKS["xcopa_sw"] | {"values": {"acc,none": 0.7}}
    for name, tasks, date in (("b", TASKS, 1.0), ("a", {"xcopa_sw": later}, 2.0)):
        (tmp_path / "model" / f"results_{name}.json").write_text(json.dumps(make_results(tasks, date=date)))
    (tmp_path / "model" / "samples_a.jsonl").write_text("{}")
    report = HarnessReport.from_files(tmp_path)
    assert len(report.scores) == 6
    assert report.by_key()["xcopa", "acc", "sw"].value == 0.7
    assert HarnessReport.from_files(tmp_path / "model" / "results_b.json").by_key()["xcopa", "acc", "sw"].value == 0.6


def test_files_that_are_no_results_of_one_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no results_\*\.json"):
        HarnessReport.from_files(tmp_path)
    for content in ("{", "[]", "{}", '{"configs": {"a": {}}, "results": {}}'):
        (tmp_path / "results_1.json").write_text(content)
        with pytest.raises(ValueError, match=r"results_1\.json"):
            HarnessReport.from_files(tmp_path)
    for name in ("one", "two"):
        (tmp_path / f"results_{len(name) + ord(name[0])}.json").write_text(json.dumps(make_results(TASKS, name)))
    (tmp_path / "results_1.json").unlink()
    with pytest.raises(ValueError, match="several models"):
        HarnessReport.from_files(tmp_path)


def test_table_shows_change_mean_and_worst_language() -> None:
    dense = make_report(en=0.80, sw=0.60, tr=0.70)
    comparison = HarnessComparison(dense, {"a": make_report(en=0.78, sw=0.50, tr=0.71), "b": dense})
    header, rows = comparison.table()
    assert header == ["benchmark", "metric", "language", "documents", "dense", "a", "change", "b", "change"]
    assert rows[1][2:7] == ["sw", "100", "0.6000 ± 0.0300", "0.5000 ± 0.0300", "-0.1000"]
    # Standard error of the mean of three independent scores: 0.03 · √3 / 3.
    assert rows[3][2:7] == ["**mean**", "", "0.7000 ± 0.0173", "0.6633 ± 0.0173", "-0.0367"]
    assert rows[4][2:7] == ["**worst**", "", "", "sw", "-0.1000"]
    assert "| xcopa" in comparison.to_markdown()
    assert HarnessComparison.from_dict(json.loads(json.dumps(comparison.to_dict()))) == comparison


def test_worst_language_is_the_one_that_rises_most_where_lower_is_better() -> None:
    dense, pruned = make_report(False, en=1.0, sw=2.0), make_report(False, en=1.4, sw=2.1)
    comparison = HarnessComparison(dense, {"pruned": pruned})
    assert comparison.worst("pruned", dense.by_key())[2] == "en"


def test_mean_has_no_error_where_a_score_has_none() -> None:
    dense = make_report(stderr=None, en=0.8, sw=0.6)
    _, rows = HarnessComparison(dense, {"pruned": dense}).table()
    assert rows[2][4] == "0.7000"


@pytest.mark.parametrize("other", [make_report(en=0.5), make_report(en=0.5, sw=0.5, samples=50)])
def test_reports_on_other_tasks_or_documents_are_refused(other: HarnessReport) -> None:
    with pytest.raises(ValueError, match="same tasks and --limit"):
        HarnessComparison(make_report(en=0.5, sw=0.5), {"pruned": other})
