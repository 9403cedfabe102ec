"""The tables of the HTML report: what is shown in each cell, and the number by which it is sorted."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..calibration.statistics import CalibrationStatistics
from .bootstrap import Estimate
from .plots import CurvePoint
from .plots.profiles import pairs
from .report import PerplexityComparison

SUMMARIES = ("mean", "seen", "unseen", "worst", "best")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: What is shown.
        key: The number that it is sorted by, `""` if that is not known; None to sort by the text.
    """

    text: str
    key: float | str | None = None


@dataclasses.dataclass(frozen=True)
class Column:
    """Head of a column; numbers stand to the right."""

    name: str
    is_number: bool = True


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: What it shows.
        columns: Heads, one per cell of a row.
        rows: Cells.
        groups: Titles above the heads, each with the number of columns below it.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    groups: Sequence[tuple[str, int]] = ()


def language_table(comparison: PerplexityComparison) -> Table:
    """Scores of the dense model and, for every pruned one, what became of them."""
    changes = {name: comparison.change(name) for name in comparison.pruned}
    columns = [Column("language", False)]
    if comparison.seen is not None:
        columns.append(Column("calibrated on", False))
    columns += [Column("tokens"), Column("perplexity"), Column("bits per byte")]
    groups = [("", len(columns) - 2), ("dense" if comparison.pruned else comparison.dense.model, 2)]
    for name in comparison.pruned:
        columns += [Column("perplexity"), Column("factor"), Column("bits per byte")]
        groups.append((name, 3))
    rows = []
    for language, score in comparison.dense.scores.items():
        row = [Cell(language)]
        if comparison.seen is not None:
            row.append(Cell("yes" if language in comparison.seen else "no"))
        row += [number(score.tokens, ",d"), number(score.perplexity, ".2f"), number(score.bits_per_byte, ".4f")]
        for name, report in comparison.pruned.items():
            pruned = report.scores[language]
            row += [
                number(pruned.perplexity, ".2f"),
                factor(changes[name].languages[language]),
                number(pruned.bits_per_byte, ".4f"),
            ]
        rows.append(row)
    return Table("Every language. The factor is by how much pruning raises the perplexity.", columns, rows, groups)


def summary_table(comparison: PerplexityComparison) -> Table:
    """Factors of the perplexity over languages, a row per pruned model."""
    changes = {name: comparison.change(name) for name in comparison.pruned}
    shown = [key for key in SUMMARIES if all(key in change.summary for change in changes.values())]
    rows = []
    for name, change in changes.items():
        ranked = sorted(change.languages, key=lambda language: change.languages[language].value)
        ends = {"worst": ranked[-1], "best": ranked[0]}
        row = [Cell(name)]
        for key in shown:
            row.append(factor(change.summary[key]))
            row += [Cell(ends[key])] if key in ends else []
        rows.append(row)
    columns = [Column("model", False)]
    for key in shown:
        columns.append(Column(key))
        columns += [Column(f"{key} language", False)] if key in ("worst", "best") else []
    return Table("All languages. Factors of the perplexity; means are geometric.", columns, rows)


def curve_table(curves: Mapping[str, Sequence[CurvePoint]]) -> Table:
    """Every point of the curves."""
    columns = [
        Column("criterion", False),
        Column("sparsity (%)"),
        Column("mean factor"),
        Column("worst factor"),
        Column("worst language", False),
    ]
    rows = [
        [
            Cell(name),
            number(100 * point.sparsity, ".1f"),
            factor(point.mean),
            factor(point.worst),
            Cell(point.worst_language),
        ]
        for name, curve in curves.items()
        for point in curve
    ]
    return Table("Every pruned model. Factors of the perplexity over all languages.", columns, rows)


def sparsity_table(record: Mapping[str, Any]) -> Table:
    """Share of zeros in every block."""
    blocks = record["blocks"]
    rows = [[Cell(name), number(100 * x, ".2f")] for name, x in zip(blocks["names"], blocks["sparsity"], strict=True)]
    return Table("Every pruned block.", [Column("block", False), Column("zeros (%)")], rows)


def calibration_table(statistics: CalibrationStatistics) -> Table:
    """What calibration read in every language."""
    columns = [Column("language", False), Column("rows"), Column("tokens"), Column("chunks")]
    rows = [
        [Cell(each.language), *(number(count, ",d") for count in (each.rows, each.tokens, each.chunks))]
        for each in statistics.coverage
    ]
    return Table("Every language that was calibrated on.", columns, rows)


def correlation_table(correlations: Tensor, languages: Sequence[str], blocks: Sequence[str]) -> Table:
    """Cross-lingual correlation of every block, and its lowest pair of languages.

    Args:
        correlations: `profiles.pairwise_correlation`, shape `(blocks, languages, languages)`.
        languages: In the order of the correlations.
        blocks: Names, in the order of the correlations.
    """
    couples = [f"{a} – {b}" for at, a in enumerate(languages) for b in languages[at + 1 :]]
    columns = [Column("block", False), Column("mean over the pairs"), Column("lowest"), Column("lowest pair", False)]
    rows = []
    for name, values in zip(blocks, pairs(correlations), strict=True):
        lowest = int(values.nan_to_num(2.0).argmin())
        mean, least = float(values.nanmean()), float(values[lowest])
        rows.append([Cell(name), number(mean, ".4f"), number(least, ".4f"), Cell(couples[lowest])])
    return Table("Every block. Correlation between the channel profiles of languages.", columns, rows)


def settings_table(record: Mapping[str, Any]) -> Table:
    """What the pruning was asked to do."""
    rows = [
        [Cell(name), Cell(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]
        for name, value in record["settings"].items()
    ]
    return Table("Settings.", [Column("setting", False), Column("value", False)], rows)


def number(value: float | None, digits: str) -> Cell:
    """A figure, or an empty cell where it is not known."""
    return Cell("", "") if value is None or math.isnan(value) else Cell(format(value, digits), value)


def factor(estimate: Estimate) -> Cell:
    """Change of the log-perplexity as a factor of the perplexity, with its interval where that is known."""
    value, *ends = (None if x is None else f"{math.exp(min(x, 700.0)):.3f}" for x in estimate)
    return Cell(f"{value}" if None in ends else f"{value} [{ends[0]}, {ends[1]}]", estimate.value)
