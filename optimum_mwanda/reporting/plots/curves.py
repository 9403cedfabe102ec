"""Picture of what each sparsity costs: the mean over languages and the language that suffers most."""

import dataclasses
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ...evaluation.bootstrap import Estimate
from ...evaluation.report import PerplexityComparison
from .drawing import GRID, LABEL_SIZE, error_lengths, new_figure, save_figure, scale_of, shorten, style
from .fonts import cover

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox


@dataclasses.dataclass(frozen=True)
class CurvePoint:
    """One pruned model on a curve.

    Attributes:
        sparsity: Share of zeros, in [0, 1].
        mean: Mean over languages of the increase of the log-perplexity over dense, in nats per token.
        worst: Increase of the language that suffers most.
        worst_language: That language.
    """

    sparsity: float
    mean: Estimate
    worst: Estimate
    worst_language: str

    @classmethod
    def of(cls, sparsity: float, comparison: PerplexityComparison, name: str) -> "CurvePoint":
        """The point of one pruned model of a comparison."""
        summary = comparison.change(name).summary
        return cls(sparsity, summary["mean"], summary["worst"], comparison.worst(name))


def sparsity_curves_figure(curves: Mapping[str, Sequence[CurvePoint]]) -> "Figure":
    """Two panels, mean over languages and worst language, with a curve per criterion.

    A table below has a row per criterion: its name and look, and the worst language of every point if there is room.

    Args:
        curves: Name of a criterion to its points, in any order.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no point to draw.
    """
    points = [point for curve in curves.values() for point in curve]
    if not points:
        raise ValueError("There is no point to draw: give at least one pruned model.")
    strip = max(0.3, 0.17 * len(curves))
    figure = new_figure(10, 4.6 + strip)
    axes = figure.subplot_mosaic([["mean", "worst"], ["key", "names"]], gridspec_kw={"height_ratios": [3.7, strip]})
    axes["worst"].sharey(axes["mean"])
    axes["names"].sharex(axes["worst"])
    axes["key"].sharey(axes["names"])
    axes["mean"].set_yscale(**scale_of([each.value for point in points for each in (point.mean, point.worst)]))
    for index, curve in enumerate(curves.values()):
        ordered = sorted(curve, key=lambda point: point.sparsity)
        at = [100 * point.sparsity for point in ordered]
        _draw(axes["mean"], at, [point.mean for point in ordered], index, "-")
        _draw(axes["worst"], at, [point.worst for point in ordered], index, "--")
    for panel, title in (("mean", "mean over languages"), ("worst", "worst language")):
        axes[panel].set(title=title, xlabel="sparsity (%)")
        axes[panel].grid(color=GRID)
    axes["mean"].set_ylabel("increase of log-perplexity over dense\n(nats per token)")
    _name_curves(axes["key"], list(curves))
    _name_worst(axes["names"], curves)
    for panel in ("mean", "worst", "names"):
        axes[panel].margins(x=0.1)  # room for the names below the first and the last point
    if _hide_overlaps(figure, axes["names"].texts):
        axes["names"].set_xlabel("names that do not fit are left out", fontsize=LABEL_SIZE)
    return figure


def plot_sparsity_curves(curves: Mapping[str, Sequence[CurvePoint]], path: str | os.PathLike[str]) -> None:
    """Draws what each sparsity costs, in the mean over languages and in the worst one.

    Args:
        curves: Name of a criterion to its points, in any order.
        path: File to write, `.png` or `.svg`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no point to draw, or the path has another suffix.
    """
    save_figure(sparsity_curves_figure(curves), path)


def _draw(axes: "Axes", at: Sequence[float], estimates: Sequence[Estimate], index: int, line: str) -> None:
    axes.errorbar(
        at,
        [each.value for each in estimates],
        yerr=error_lengths(estimates),
        linestyle=line,
        markersize=5,
        elinewidth=0.8,
        **style(index),
    )


def _name_curves(axes: "Axes", names: Sequence[str]) -> None:
    """The row heads of the table, which also serve as the legend."""
    for row, name in enumerate(names):
        axes.plot([0.92, 0.96, 1], [row] * 3, markevery=[1], markersize=5, **style(row))
        # Clipped text takes no room from the curves.
        axes.text(
            0.9,
            row,
            shorten(name, 60),
            fontsize=LABEL_SIZE + 1,
            ha="right",
            va="center",
            parse_math=False,
            clip_on=True,
        )
    axes.set_xlim(0, 1)
    axes.axis("off")


def _name_worst(axes: "Axes", curves: Mapping[str, Sequence[CurvePoint]]) -> None:
    """The rows of the table: the worst language, under its point."""
    for row, curve in enumerate(curves.values()):
        for point in curve:
            axes.text(
                100 * point.sparsity,
                row,
                shorten(point.worst_language, 12),
                color=style(row)["color"],
                fontsize=LABEL_SIZE,
                ha="center",
                va="center",
                parse_math=False,
            )
    axes.set_ylim(len(curves) - 0.5, -0.5)
    axes.tick_params(left=False, labelleft=False, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)


def _hide_overlaps(figure: "Figure", labels: Sequence["Text"]) -> bool:
    """Hides every label that would overlap an earlier one.

    Returns:
        Whether any is hidden.
    """
    cover(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.draw_without_rendering()
    kept: list[Bbox] = []
    for label in labels:
        box = label.get_window_extent()
        label.set_visible(not any(box.overlaps(other) for other in kept))
        if label.get_visible():
            kept.append(box)
    return len(kept) < len(labels)
