"""The results of a comparison as Markdown."""

import math
from collections.abc import Mapping, Sequence

from ...evaluation.bootstrap import Estimate
from ...utils import markdown_table
from .summary import FIGURES, Section

BASELINE = "wanda"
HOW_TO_READ = (
    "A factor says how many times higher the perplexity is than that of the dense model; 1 is no loss. Means over "
    "languages are geometric, and `worst` is the language that suffers most. Brackets hold {percent:g} % confidence "
    "intervals: over seeds for factors, and by paired resampling of the held-out text for the comparison with "
    "`{baseline}` and for single languages."
)


def to_markdown(sections: Sequence[Section], baseline: str = BASELINE, show: Sequence[str] = ()) -> str:
    """All tables, with a chapter per calibration and a part per sparsity or pattern.

    Args:
        sections: What was measured.
        baseline: Method to compare the others with, if it was measured.
        show: Methods to show in every language; by default the baseline and the best method.
    """
    first = sections[0]
    parts = [
        f"# Comparison: {first.dense.model or 'a model'}",
        HOW_TO_READ.format(percent=100 * first.confidence, baseline=baseline),
    ]
    conditions = list(dict.fromkeys(section.condition for section in sections))
    for condition in conditions:
        parts.append(f"## Calibration: {condition}")
        for section in sections:
            if section.condition == condition:
                parts += [f"### {section.point}", *section_tables(section, baseline, show)]
    if len(conditions) > 1:
        parts += ["## Calibrations compared", "Factor in the mean over languages, and in the worst one."]
        for point in dict.fromkeys(section.point for section in sections):
            parts += [f"### {point}, by calibration", condition_table([s for s in sections if s.point == point])]
    return "\n\n".join(parts) + "\n"


def section_tables(section: Section, baseline: str = BASELINE, show: Sequence[str] = ()) -> list[str]:
    """What all methods cost, how they compare with the baseline, and what some of them cost in every language."""
    parts = [cost_table(section)]
    if section.unfinished:
        parts.append(f"Not finished: {', '.join(section.unfinished)}.")
    if baseline in section.seeds and len(section.seeds) > 1:
        parts += [
            f"Increase of the log-perplexity relative to that of `{baseline}`, in percent:",
            difference_table(section, baseline),
        ]
    names = shown_methods([section], baseline, show)
    parts += ["By language:", section.compare(names).to_markdown()]
    return parts


def cost_table(section: Section) -> str:
    """Factors on the perplexity, a row per method."""
    rows = []
    for name, reports in section.seeds.items():
        figures = section.over_seeds(name)
        worst = section.compare([name]).worst(name)
        rows.append([name, len(reports), *(_factor(figures.get(each)) for each in FIGURES), worst])
    return markdown_table(["method", "seeds", *FIGURES, "language"], rows)


def difference_table(section: Section, baseline: str) -> str:
    """How much smaller or larger the increases of each method are than those of the baseline.

    The interval is that of the difference, divided by the increase of the baseline, from the seeds that both have.
    """
    rows = []
    for name in section.seeds:
        if name != baseline:
            comparison = section.on_shared_seeds(name, baseline).compare([name, baseline])
            before = comparison.change(baseline).summary
            change = comparison.change(name, against=baseline).summary
            rows.append([name, *(_percent(change.get(each), before.get(each)) for each in FIGURES)])
    return markdown_table(["method", *FIGURES], rows)


def condition_table(sections: Sequence[Section]) -> str:
    """One method per row and one calibration per column, at one sparsity or pattern."""
    names = dict.fromkeys(name for section in sections for name in section.seeds)
    rows = []
    for name in names:
        row = [name]
        for section in sections:
            figures = section.over_seeds(name) if name in section.seeds else {}
            row += [_factor(figures.get("mean")), _factor(figures.get("worst"))]
        rows.append(row)
    header = [f"{section.condition}, {figure}" for section in sections for figure in ("mean", "worst")]
    return markdown_table(["method", *header], rows)


def model_tables(models: Mapping[str, Sequence[Section]], baseline: str = BASELINE) -> str:
    """What holds on which model: a part per calibration and point, a column per model, methods below each other.

    Cells are the increase of the log-perplexity relative to that of the baseline on the same model, in percent: the
    mean over languages with its interval, and in parentheses the increase of the language that suffers most.

    Args:
        models: Name of a model to what was measured on it.
        baseline: Method that the others are compared with; models on which it was not measured have empty cells.
    """
    at = {name: {(each.condition, each.point): each for each in sections} for name, sections in models.items()}
    parts = [f"Increase of the log-perplexity relative to that of `{baseline}`, in percent, mean (worst language):"]
    for condition, point in dict.fromkeys(place for places in at.values() for place in places):
        sections = {name: places.get((condition, point)) for name, places in at.items()}
        methods = dict.fromkeys(method for each in sections.values() if each is not None for method in each.seeds)
        rows = [
            [method, *(_relative(section, method, baseline) for section in sections.values())]
            for method in methods
            if method != baseline
        ]
        parts += [f"### {point}, calibration: {condition}", markdown_table(["method", *sections], rows)]
    return "\n\n".join(parts) + "\n"


def _relative(section: Section | None, method: str, baseline: str) -> str:
    if section is None or method not in section.seeds or baseline not in section.seeds:
        return ""
    comparison = section.on_shared_seeds(method, baseline).compare([method, baseline])
    before = comparison.change(baseline).summary
    change = comparison.change(method, against=baseline).summary
    worst = change["worst"]._replace(low=None, high=None)
    return f"{_percent(change['mean'], before['mean'])} ({_percent(worst, before['worst'])})"


def shown_methods(sections: Sequence[Section], baseline: str = BASELINE, show: Sequence[str] = ()) -> list[str]:
    """The methods to show in full: those asked for, or the baseline and the best, if some section holds them."""
    best = [section.best() for section in sections]
    found = [name for name in show or (baseline, *best) if any(name in section.seeds for section in sections)]
    return list(dict.fromkeys(found or best))


def _factor(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    value, *ends = (None if x is None else f"{math.exp(min(x, 700.0)):.3f}" for x in estimate)
    return f"{value}" if None in ends else f"{value} [{ends[0]}, {ends[1]}]"


def _percent(change: Estimate | None, before: Estimate | None) -> str:
    if change is None or before is None or before.value <= 0:
        return ""
    value, *ends = (None if x is None else f"{100 * x / before.value:+.1f}" for x in change)
    return f"{value}" if None in ends else f"{value} [{ends[0]}, {ends[1]}]"
