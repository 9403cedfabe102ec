"""Scores and changes as Markdown, JSON, pandas and datasets."""

import json
import math
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from ..utils import abridged, markdown_table
from .bootstrap import Estimate
from .changes import METRICS, Change, Metric
from .scores import LanguageScore

if TYPE_CHECKING:
    import pandas
    from datasets import Dataset

FIGURES = ("nll", "perplexity", "bits_per_byte")
SUMMARIES = {
    "mean": "mean",
    "seen": "seen",
    "unseen": "unseen",
    "worst": "worst",
    "best": "best",
    "spread": "deviation",
}

_LIST_OF_NUMBERS = re.compile(r"\[\n([\d\s.,e+-]*)\]")

Scores = Mapping[str, LanguageScore]


def to_json(values: Any) -> str:
    """Indented JSON with a final line break; a list of numbers stays on one line."""
    text = json.dumps(values, indent=2, ensure_ascii=False)
    # Strings hold no line breaks, so none can look like a list.
    return _LIST_OF_NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def score_row(score: LanguageScore, prefix: str = "") -> dict[str, Any]:
    """The figures of a score, each with its standard error."""
    cells: dict[str, Any] = {}
    for name in FIGURES:
        cells[prefix + name] = getattr(score, name)
        cells[f"{prefix}{name}_standard_error"] = score.standard_errors[name]
    return cells


def change_row(changes: Mapping[Metric, Change], language: str) -> dict[str, Any]:
    """The increases in a language, each with both ends of its interval."""
    return {
        f"{metric}_increase{end and '_'}{end}": value
        for metric, change in changes.items()
        for end, value in zip(("", "low", "high"), change.languages[language], strict=True)
    }


def to_pandas(rows: list[dict[str, Any]]) -> "pandas.DataFrame":
    """Rows as a data frame."""
    import pandas

    return pandas.DataFrame(rows)


def to_dataset(rows: list[dict[str, Any]]) -> "Dataset":
    """Rows as a dataset."""
    from datasets import Dataset

    return Dataset.from_list(rows)


def with_error(value: float | None, error: float | None, digits: int) -> str:
    """A figure and, if known, its standard error."""
    return _decimal(value, digits) + ("" if error is None else f" ± {error:.{digits}f}")


def without_interval(scores: Scores) -> str:
    """Why some languages have no error or interval; nothing if all have one, or if windows were not kept."""
    single = [name for name, score in scores.items() if score.windows is not None and not score.can_be_resampled]
    if not single:
        return ""
    return (
        f"\n\nNo interval for {abridged(single)}: the text fills one window, and how far windows differ takes two. "
        "Evaluate more text, or shorter windows."
    )


def comparison_table(
    dense: Scores,
    pruned: Mapping[str, Scores],
    changes: Mapping[str, Change],
    seen: Collection[str] | None,
    metric: Metric,
) -> str:
    """One row per language and summary, and two columns per pruned model: its figure, and how pruning changed it."""
    figure, digits, sign = ("perplexity", 2, "×") if metric == METRICS[0] else ("bits_per_byte", 4, "%")
    header = ["language", *([] if seen is None else ["calibrated"]), "dense"]
    for name in pruned:
        header += [name, sign]
    rows = []
    for language in dense:
        row = [language, *([] if seen is None else ["yes" if language in seen else "no"])]
        row.append(_decimal(getattr(dense[language], figure), digits))
        for name, scores in pruned.items():
            estimate = changes[name].languages[language]
            row += [_decimal(getattr(scores[language], figure), digits), _interval(estimate, metric)]
        rows.append(row)
    found = next(iter(changes.values())).summary if changes else {}
    for label, key in SUMMARIES.items():
        if key not in found:
            continue
        row = [f"**{label}**", *([] if seen is None else [""]), ""]
        for change in changes.values():
            row += [_extreme(change, key), _interval(change.summary[key], metric)]
        rows.append(row)
    return markdown_table(header, rows)


def _extreme(change: Change, key: str) -> str:
    """The language behind `worst` and `best`."""
    choose = {"worst": max, "best": min}.get(key)
    return "" if choose is None else choose(change.languages, key=lambda language: change.languages[language].value)


def _interval(estimate: Estimate, metric: Metric) -> str:
    if metric == METRICS[0]:
        value, *ends = (None if x is None else f"{math.exp(min(x, 700.0)):.3f}" for x in estimate)
    else:
        value, *ends = (None if x is None else f"{100 * x:+.2f}" for x in estimate)
    return f"{value}" if None in ends else f"{value} [{ends[0]}, {ends[1]}]"


def _decimal(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
