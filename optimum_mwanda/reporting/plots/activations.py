"""Pictures of calibration: which languages drive which blocks, and where languages behave alike."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...calibration.statistics import CalibrationStatistics
from .block_labels import label_blocks
from .drawing import COLORS, GRID, MAX_INCHES, ROW, label_rows, new_figure, rows_height, save_figure
from .profiles import Blocks, group_by_block, language_activity, pairs, pairwise_correlation, similarity_order

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ABSENT = "#bbbbbb"


def language_activity_figure(statistics: CalibrationStatistics, blocks: Blocks | None = None) -> "Figure":
    """Heat map of `profiles.language_activity`, with a row per language and a column per block; grey means no token.

    Args:
        statistics: Result of a calibration.
        blocks: Block to the names of its matrices; None to tell them by name.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    blocks = group_by_block(list(statistics.weights)) if blocks is None else blocks
    activity = language_activity(statistics, blocks).numpy()
    height = rows_height(len(statistics.languages))
    figure = new_figure(min(max(3.5 + 0.07 * len(blocks), 5), 12), height + 0.9)
    import matplotlib
    import numpy

    axes = figure.subplots()
    finite = numpy.abs(activity[numpy.isfinite(activity)])
    most = max(float(finite.max()) if finite.size else 0.0, 1e-3)
    image = axes.imshow(
        activity,
        cmap=matplotlib.colormaps["PuOr_r"].with_extremes(bad=_ABSENT),
        vmin=-most,
        vmax=most,
        aspect="auto",
        interpolation="none",
    )
    label_rows(axes.yaxis, statistics.languages, height)
    label_blocks(axes, list(blocks))
    # A short picture has no room for the words beside the bar.
    short = height < 2.5
    bar = figure.colorbar(image, ax=axes, location="top" if short else "right", aspect=40, shrink=1 if short else 0.6)
    bar.set_label("activation, log₂ of the ratio to the mean over languages")
    return figure


def block_correlation_figure(correlations: Tensor, blocks: Sequence[str]) -> "Figure":
    """Line of the cross-lingual correlation `ρ_b` of every block, with the range over the pairs of languages.

    Args:
        correlations: `profiles.pairwise_correlation`, shape `(blocks, languages, languages)`.
        blocks: Module paths, in the order of the correlations.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    values = pairs(correlations)
    figure = new_figure(8, 3.2)
    axes = figure.subplots()
    at = range(len(values))
    if values.shape[1] > 1:
        absent = values.isnan()
        low = values.masked_fill(absent, torch.inf).amin(1)
        high = values.masked_fill(absent, -torch.inf).amax(1)
        known = low <= high
        axes.fill_between(
            at,
            low.numpy(),
            high.numpy(),
            where=known.tolist(),
            color=COLORS[5],
            alpha=0.35,
            linewidth=0,
            label="range over the pairs",
        )
    axes.plot(at, values.nanmean(1).numpy(), color=COLORS[0], marker="o", markersize=3, label="mean over the pairs")
    axes.set(ylabel="cross-lingual correlation", xlim=(-0.5, len(values) - 0.5))
    axes.grid(axis="y", color=GRID)
    label_blocks(axes, blocks)
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    return figure


def language_correlation_figure(correlations: Tensor, languages: Sequence[str]) -> "Figure":
    """Heat map of the correlation between every two different languages, averaged over blocks.

    Similar languages are side by side.

    Args:
        correlations: `profiles.pairwise_correlation`, shape `(blocks, languages, languages)`.
        languages: In the order of the correlations.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    mean = correlations.nanmean(0)
    values = pairs(mean)
    known = values[values.isfinite()]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    order = similarity_order(mean)
    side = min(max(len(languages) * ROW, 2.0), MAX_INCHES)
    figure = new_figure(side + 1.9, side + 0.9)
    import matplotlib

    axes = figure.subplots()
    image = axes.imshow(
        mean.fill_diagonal_(torch.nan)[order][:, order].numpy(),  # the ones would use up the range of colours
        cmap=matplotlib.colormaps["viridis"].with_extremes(bad=_ABSENT),
        vmin=low,
        vmax=max(high, low + 0.1),
        aspect="auto",  # a fixed one leaves the labels less room than they need
        interpolation="none",
    )
    for axis in (axes.xaxis, axes.yaxis):
        label_rows(axis, [languages[index] for index in order], side)
    axes.tick_params(axis="x", rotation=90)
    figure.colorbar(image, ax=axes, aspect=40, shrink=min(1.0, 6 / side), label="correlation, mean over blocks")
    return figure


def plot_language_activity(
    statistics: CalibrationStatistics, path: str | os.PathLike[str], blocks: Blocks | None = None
) -> None:
    """Draws how strongly every language drives every block.

    Args:
        statistics: Result of a calibration.
        path: File to write, `.png` or `.svg`.
        blocks: Block to the names of its matrices; None to tell them by name.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the path has another suffix.
    """
    save_figure(language_activity_figure(statistics, blocks), path)


def plot_block_correlation(
    statistics: CalibrationStatistics, path: str | os.PathLike[str], blocks: Blocks | None = None
) -> None:
    """Draws the cross-lingual correlation of every block.

    Args:
        statistics: Result of a calibration on two languages or more.
        path: File to write, `.png` or `.svg`.
        blocks: Block to the names of its matrices; None to tell them by name.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is only one language, or the path has another suffix.
    """
    blocks = group_by_block(list(statistics.weights)) if blocks is None else blocks
    save_figure(block_correlation_figure(_correlations(statistics, blocks), list(blocks)), path)


def plot_language_correlation(
    statistics: CalibrationStatistics, path: str | os.PathLike[str], blocks: Blocks | None = None
) -> None:
    """Draws the correlation between every two languages.

    Args:
        statistics: Result of a calibration on two languages or more.
        path: File to write, `.png` or `.svg`.
        blocks: Block to the names of its matrices; None to tell them by name.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is only one language, or the path has another suffix.
    """
    blocks = group_by_block(list(statistics.weights)) if blocks is None else blocks
    save_figure(language_correlation_figure(_correlations(statistics, blocks), statistics.languages), path)


def _correlations(statistics: CalibrationStatistics, blocks: Blocks) -> Tensor:
    if len(statistics.languages) < 2:
        raise ValueError(
            f"Correlation needs two languages, but the statistics hold only {', '.join(statistics.languages)}: "
            "calibrate on more."
        )
    return pairwise_correlation(statistics, blocks)
