"""What a model card says about the scores of lm-evaluation-harness."""

import math

from huggingface_hub import EvalResult

from ..evaluation.harness.comparison import HarnessComparison
from ..evaluation.harness.results import HarnessReport, HarnessScore
from .card_text import Markdown, clean, table

HARNESS_TASK_NAME = "Benchmarks, one language at a time (optimum-mwanda)"
"""Task of these results in the metadata: an update replaces results under this name and keeps others."""

_OURS = ("**mean**", "**worst**", "–", "")


def harness_table(comparison: HarnessComparison) -> Markdown:
    """The scores of the dense and the pruned model, with names as inline code, because they may come from anywhere."""
    header, rows = comparison.table()
    figures = [[*row[:3], *map(Markdown, row[3:])] for row in rows]
    for row in figures:
        row[2] = Markdown(row[2]) if row[2] in _OURS else row[2]
        if row[2] == "**worst**":  # its other cells name languages
            row[5::2] = [str(cell) for cell in row[5::2]]
    return table(header, figures)


def harness_results(report: HarnessReport) -> list[EvalResult]:
    """One entry of the metadata per score."""
    return [_result(score, report.version) for score in report.scores if math.isfinite(score.value)]


def _result(score: HarnessScore, version: str) -> EvalResult:
    name = f"{clean(score.metric)} ({clean(score.language)})" if score.language else clean(score.metric)
    is_repository = score.dataset.count("/") == 1 and not score.dataset.startswith(("/", "."))
    return EvalResult(
        task_type="text-generation",
        task_name=HARNESS_TASK_NAME,
        # The metadata joins results of the same type, so local benchmarks must not share one.
        dataset_type=clean(score.dataset if is_repository else score.benchmark),
        dataset_name=clean(score.benchmark),
        dataset_config=clean(score.language) or None,
        dataset_split=clean(score.split) or None,
        metric_type=clean(score.metric.partition(" ")[0]),
        metric_name=name,
        metric_value=round(score.value, 4),
        source_name=f"lm-evaluation-harness {clean(version)}".strip(),
        source_url="https://github.com/EleutherAI/lm-evaluation-harness",
    )
