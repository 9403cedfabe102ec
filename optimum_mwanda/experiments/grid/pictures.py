"""The results of a comparison as pictures and HTML pages."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...evaluation.report import PerplexityComparison
from ...reporting.page import write_html_report
from ...reporting.plots import CurvePoint, plot_degradation, plot_sparsity_curves
from .markdown import BASELINE, shown_methods
from .summary import Section

FORMATS = ("png", "svg")


def plot_sections(
    sections: Sequence[Section], folder: Path, baseline: str = BASELINE, show: Sequence[str] = ()
) -> list[Path]:
    """Draws every language at every point, and the cost of every sparsity for each calibration.

    Args:
        sections: What was measured.
        folder: Folder to write to; created if it does not exist.
        baseline: Method to show.
        show: Methods to show instead of the baseline and the best ones.

    Returns:
        The files: `languages-…` and `sparsity-…`, as PNG and SVG.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for section in sections:
        comparison = section.compare(shown_methods([section], baseline, show))
        for kind in FORMATS:
            files.append(folder / f"languages-{_file_name(section.condition, section.point)}.{kind}")
            plot_degradation(comparison, files[-1])
    for condition, group in _by_condition(sections):
        if curves := make_curves(group, baseline, show):
            for kind in FORMATS:
                files.append(folder / f"sparsity-{_file_name(condition)}.{kind}")
                plot_sparsity_curves(curves, files[-1])
    return files


def write_reports(
    sections: Sequence[Section],
    path: Path,
    baseline: str = BASELINE,
    show: Sequence[str] = (),
    overwrite: bool = True,
) -> list[Path]:
    """Writes an HTML page per calibration.

    Args:
        sections: What was measured.
        path: File of the page; if there are several, the calibration is added to each name.
        baseline: Method to show.
        show: Methods to show instead of the baseline and the best ones.
        overwrite: Whether to replace files that exist.

    Returns:
        The files.

    Raises:
        FileExistsError: If a file exists and must not be replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    groups = list(_by_condition(sections))
    files = []
    for condition, group in groups:
        names = shown_methods(group, baseline, show)
        pruned = {
            f"{name}, {section.point}": section.compare([name]).pruned[name]
            for name in names
            for section in group
            if name in section.seeds
        }
        drawn = {section.point: [name for name in names if name in section.seeds] for section in group}
        facets = {section.point: section.compare(drawn[section.point]) for section in group if drawn[section.point]}
        comparison = PerplexityComparison(group[0].dense, pruned, group[0].seen, group[0].confidence)
        target = path if len(groups) == 1 else path.with_stem(f"{path.stem}-{_file_name(condition)}")
        if target.exists() and not overwrite:
            raise FileExistsError(f"{target} exists: give another name or --overwrite, with --tables-only.")
        title = f"Pruning {group[0].dense.model or 'a model'}, calibration: {condition}"
        curves = make_curves(group, baseline, show) or None
        write_html_report(target, comparison, curves=curves, facets=facets if len(facets) > 1 else None, title=title)
        files.append(target)
    return files


def make_curves(
    sections: Sequence[Section], baseline: str = BASELINE, show: Sequence[str] = ()
) -> dict[str, list[CurvePoint]]:
    """Method to its points at every sparsity; N:M patterns are not points on a curve."""
    plain = [section for section in sections if section.sparsity is not None]
    if not plain:
        return {}
    names = shown_methods(plain, baseline, show)
    return {
        name: [
            CurvePoint.of(float(section.sparsity or 0), section.compare([name]), name)
            for section in plain
            if name in section.seeds
        ]
        for name in names
    }


def _by_condition(sections: Sequence[Section]) -> Iterator[tuple[str, list[Section]]]:
    for condition in dict.fromkeys(section.condition for section in sections):
        yield condition, [section for section in sections if section.condition == condition]


def _file_name(*parts: str) -> str:
    return "-".join(re.sub(r"\W+", "-", part).strip("-") for part in parts)
