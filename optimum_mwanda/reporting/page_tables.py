"""The tables of the HTML report: what each cell shows, and the number by which it is sorted."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..calibration.statistics import CalibrationStatistics
from ..evaluation.bootstrap import Estimate
from ..evaluation.changes import Change, Metric
from ..evaluation.harness.comparison import HarnessComparison
from ..evaluation.report import PerplexityComparison, PerplexityReport
from ..evaluation.tables import SUMMARIES, with_error
from ..record.schema import SparsityRecord
from .plots import CurvePoint
from .plots.profiles import pairs

Changes = Mapping[Metric, Mapping[str, Change]]
"""Metric to name of a pruned model to what pruning changed."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: What is shown.
        key: The number to sort by, `""` if unknown; None to sort by the text.
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


def score_table(report: PerplexityReport) -> Table:
    """Scores of one model, each with its standard error."""
    columns = [Column("language", False), *map(Column, ("tokens", "nll", "perplexity", "bits per byte"))]
    rows = [
        [
            Cell(language),
            number(score.tokens, ",d"),
            measured(score.nll, score.standard_errors["nll"], 4),
            measured(score.perplexity, score.standard_errors["perplexity"], 2),
            measured(score.bits_per_byte, score.standard_errors["bits_per_byte"], 4),
        ]
        for language, score in report.scores.items()
    ]
    return Table("Every language. After ± is the standard error, if there was enough text for one.", columns, rows)


def language_table(comparison: PerplexityComparison, changes: Changes) -> Table:
    """Scores of the dense model and, for every pruned one, how they changed."""
    columns = [Column("language", False)]
    if comparison.seen is not None:
        columns.append(Column("calibrated on", False))
    columns += [Column("tokens"), Column("perplexity"), Column("bits per byte")]
    groups = [("", len(columns) - 2), ("dense", 2)]
    for name in comparison.pruned:
        columns += [Column("perplexity"), Column("factor"), Column("bits per byte"), Column("increase (%)")]
        groups.append((name, 4))
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
                factor(changes["log_perplexity"][name].languages[language]),
                number(pruned.bits_per_byte, ".4f"),
                percent(changes["bits_per_byte"][name].languages[language]),
            ]
        rows.append(row)
    caption = "Every language. The factor is that of the perplexity, the increase that of bits per byte."
    return Table(caption, columns, rows, groups)


def summary_table(metric: Metric, changes: Mapping[str, Change]) -> Table:
    """What pruning changed over languages, a row per pruned model."""
    what, show = {
        "log_perplexity": ("Factors of the perplexity; means are geometric", factor),
        "bits_per_byte": ("Increase of bits per byte in percent", percent),
    }[metric]
    shown = {label: key for label, key in SUMMARIES.items() if all(key in each.summary for each in changes.values())}
    rows = []
    for name, change in changes.items():
        ranked = sorted(change.languages, key=lambda language: change.languages[language].value)
        ends = {"worst": f"{ranked[-1]}: ", "best": f"{ranked[0]}: "}
        cells = {key: show(change.summary[key]) for key in shown.values()}
        rows.append([Cell(name), *(Cell(ends.get(key, "") + cell.text, cell.key) for key, cell in cells.items())])
    columns = [Column("model", False), *map(Column, shown)]
    return Table(f"All languages. {what}. The spread is the standard deviation over languages.", columns, rows)


def harness_tables(comparison: HarnessComparison) -> list[Table]:
    """Every score of lm-evaluation-harness, and the means and worst cases if there are several languages."""
    header, rows = comparison.table()
    summaries = {"**mean**": "mean", "**worst**": "worst"}
    scores = [row for row in rows if row[2] not in summaries]
    # Without the number of documents, which belongs to single languages.
    over = [[*row[:2], summaries[row[2]], *row[4:]] for row in rows if row[2] in summaries]
    tables = [_harness_table("Every score.", header, scores)]
    if over:
        caption = "All languages, each counted equally. The worst is the one that suffers most."
        tables.insert(0, _harness_table(caption, [*header[:2], "over languages", *header[4:]], over))
    return tables


def _harness_table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """The first three columns are names; the others are sorted by the figure that they begin with."""
    columns = [Column(name, at > 2) for at, name in enumerate(header)]
    return Table(caption, columns, [[*map(Cell, row[:3]), *map(_leading_figure, row[3:])] for row in rows])


def _leading_figure(text: str) -> Cell:
    try:
        value = float(text.partition(" ")[0])
    except ValueError:  # such a column also holds the language that suffers most
        value = math.nan
    return Cell(text, value if math.isfinite(value) else "")


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


def sparsity_table(record: SparsityRecord) -> Table:
    """Share of zeros in every block."""
    rows = [[Cell(block.name), number(100 * block.sparsity, ".2f")] for block in record.blocks]
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
    couples = torch.triu_indices(len(languages), len(languages), offset=1)  # in the order of `pairs`
    columns = [Column("block", False), Column("mean over the pairs"), Column("lowest"), Column("lowest pair", False)]
    rows = []
    for name, values in zip(blocks, pairs(correlations), strict=True):
        lowest = int(values.nan_to_num(2.0).argmin())
        mean, least = float(values.nanmean()), float(values[lowest])
        one, other = (languages[index] for index in couples[:, lowest].tolist())
        rows.append([Cell(name), number(mean, ".4f"), number(least, ".4f"), Cell(f"{one} – {other}")])
    return Table("Every block. Correlation between the channel profiles of languages.", columns, rows)


def settings_table(record: SparsityRecord) -> Table:
    """What the pruning was asked to do."""
    rows = [
        [Cell(name), Cell(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]
        for name, value in record.settings.items()
    ]
    return Table("Settings.", [Column("setting", False), Column("value", False)], rows)


def number(value: float | None, digits: str) -> Cell:
    """A figure, or an empty cell if it is unknown."""
    return Cell("", "") if value is None or math.isnan(value) else Cell(format(value, digits), value)


def measured(value: float | None, error: float | None, digits: int) -> Cell:
    """A figure with its standard error, if known."""
    return Cell(with_error(value, error, digits), "" if value is None else value)


def factor(estimate: Estimate) -> Cell:
    """Change of the log-perplexity as a factor of the perplexity, with its interval if known."""
    return _changed(estimate, lambda value: f"{math.exp(min(value, 700.0)):.3f}")


def percent(estimate: Estimate) -> Cell:
    """Change of bits per byte in percent, with its interval if known."""
    return _changed(estimate, lambda value: f"{100 * value:.2f}")


def _changed(estimate: Estimate, shown: Callable[[float], str]) -> Cell:
    value, low, high = estimate
    interval = "" if low is None or high is None else f" [{shown(low)}, {shown(high)}]"
    return Cell(shown(value) + interval, value)
