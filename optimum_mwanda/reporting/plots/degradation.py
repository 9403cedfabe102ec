"""Picture of what pruning costs in every language, pruned models side by side."""

import itertools
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...evaluation.changes import Change
from ...evaluation.report import PerplexityComparison
from .drawing import (
    GRID,
    LABEL_SIZE,
    error_lengths,
    label_rows,
    new_figure,
    rows_height,
    save_figure,
    scale_of,
    shorten,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Looks = dict[str, dict[str, Any]]

_MAX_ROWS = 50
"""Languages in one column of the picture."""

_MAX_LANGUAGES = 4 * _MAX_ROWS


def degradation_figure(comparison: PerplexityComparison, series: Sequence[str] | None = None) -> "Figure":
    """The increase of the log-perplexity over dense, with a row per language and those that suffer most on top.

    Every pruned model has a colour and a marker, which is hollow for languages that were not calibrated on; bars are
    confidence intervals, if known. More than 50 languages are split into several columns; of more than 200, the picture
    shows the 100 that suffer most and the 100 that suffer least.

    Args:
        comparison: At least one pruned model against its dense original.
        series: Names of which each has a colour, so that pictures beside each other agree; None for the pruned models.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no pruned model.
    """
    looks = dict(zip(series or comparison.pruned, map(style, itertools.count()), strict=False))
    changes = {name: comparison.change(name) for name in comparison.pruned}
    if not changes:
        raise ValueError("The comparison holds no pruned model: there is nothing to draw.")
    totals = {each: sum(change.languages[each].value for change in changes.values()) for each in comparison.languages}
    languages = sorted(totals, key=lambda each: -totals[each])
    half = _MAX_LANGUAGES // 2
    is_part = len(languages) > _MAX_LANGUAGES
    if is_part:
        languages = languages[:half] + languages[-half:]
    panels = math.ceil(len(languages) / _MAX_ROWS)
    rows = math.ceil(len(languages) / panels)
    height = rows_height(rows, row=max(0.2, 0.06 * len(changes)))
    legend_rows = math.ceil((len(changes) + 2) / _legend_columns(panels))
    figure = new_figure(6 * panels, height + 0.6 + 0.22 * legend_rows)
    columns = figure.subplots(1, panels, sharex=True, squeeze=False)[0]
    columns[0].set_xscale(**scale_of([each.value for change in changes.values() for each in change.languages.values()]))
    for panel, axes in enumerate(columns):
        shown = languages[panel * rows : (panel + 1) * rows]
        _draw(axes, changes, looks, comparison.unseen, shown)
        label_rows(axes.yaxis, shown, height)
        axes.set_ylim(rows - 0.5, -0.5)
        axes.set_xlabel("increase of log-perplexity over dense (nats per token)", fontsize=LABEL_SIZE + 1)
        axes.tick_params(axis="x", which="both", labelsize=LABEL_SIZE)
    if is_part:
        for axes, end in ((columns[0], "most"), (columns[panels // 2], "least")):
            axes.set_title(f"the {half} of {len(totals):,} languages that suffer {end}", fontsize=LABEL_SIZE + 1)
    _legend(figure, comparison, looks, panels)
    return figure


def plot_degradation(comparison: PerplexityComparison, path: str | os.PathLike[str]) -> None:
    """Draws what every pruned model loses in every language.

    Args:
        comparison: At least one pruned model against its dense original.
        path: File to write, `.png` or `.svg`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no pruned model, or the path has another suffix.
    """
    save_figure(degradation_figure(comparison), path)


def _draw(
    axes: "Axes", changes: dict[str, Change], looks: Looks, unseen: Sequence[str], languages: Sequence[str]
) -> None:
    for row in range(0, len(languages), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="#f3f3f3", zorder=0)
    axes.axvline(0, color="#888888", linewidth=0.8, zorder=1)
    axes.grid(axis="x", color=GRID, zorder=1)
    count = len(changes)
    for index, name in enumerate(changes):
        look = looks[name]
        # The models share the row of a language, each on its own line.
        offset = 0.0 if count == 1 else 0.6 * (index / (count - 1) - 0.5)
        for hollow in (False, True):
            rows = [row for row, each in enumerate(languages) if (each in unseen) is hollow]
            estimates = [changes[name].languages[languages[row]] for row in rows]
            axes.errorbar(
                [each.value for each in estimates],
                [row + offset for row in rows],
                xerr=error_lengths(estimates),
                linestyle="none",
                elinewidth=0.8,
                markersize=4.5,
                markerfacecolor="white" if hollow else look["color"],
                zorder=3,
                **look,
            )


def _legend(figure: "Figure", comparison: PerplexityComparison, looks: Looks, panels: int) -> None:
    from matplotlib.lines import Line2D

    entries = [(looks[name], shorten(name, 40)) for name in comparison.pruned]
    if comparison.unseen:
        grey = {"color": "#666666", "marker": "o"}
        entries += [
            (grey, "filled: language calibrated on"),
            ({**grey, "markerfacecolor": "white"}, "hollow: not calibrated on"),
        ]
    legend = figure.legend(
        handles=[Line2D([], [], linestyle="none", label=label, **look) for look, label in entries],
        loc="outside upper center",
        ncols=_legend_columns(panels),
        frameon=False,
        fontsize=LABEL_SIZE + 1,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _legend_columns(panels: int) -> int:
    return 2 * panels
