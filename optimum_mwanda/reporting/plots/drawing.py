"""What all pictures share: matplotlib on demand, colours, room for labels, and files that are the same on every run."""

import io
import math
import os
import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...evaluation.bootstrap import Estimate
from ...storage.outputs import write_bytes
from .fonts import cover

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's palette (2008) for the colour-blind, with grey in place of yellow, which is hard to see on white.
# Colours repeat after 8 series and markers after 9, so that 72 series differ.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#888888")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
GRID = "#dddddd"

ROW = 0.17
"""Height of a labelled row in inches."""

MAX_INCHES = 24.0
"""Largest height and width of a picture: beyond that, rows get thinner and only some are labelled."""

LABEL_SIZE = 7

DOTS_PER_INCH = 200

_METADATA: dict[str, dict[str, str | None]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure without global state.

    Args:
        width: In inches.
        height: In inches.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install matplotlib.") from error
    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def render(figure: "Figure", kind: str) -> bytes:
    """The bytes of a picture, the same for equal figures.

    Args:
        figure: Figure to draw.
        kind: `png` or `svg`.
    """
    import matplotlib

    cover(figure)
    file = io.BytesIO()
    # Text stays text in an SVG: it can be searched, and the reader's fonts have the glyphs of every script.
    with (
        matplotlib.rc_context({"svg.hashsalt": "optimum-mwanda", "svg.fonttype": "none"}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # there is one warning for all
        figure.savefig(file, format=kind, dpi=DOTS_PER_INCH, metadata=_METADATA[kind])
    return file.getvalue()


def save_figure(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Writes a picture, as PNG or SVG by the suffix of the path.

    Raises:
        ValueError: If the path has another suffix.
    """
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in _METADATA:
        raise ValueError(f"{os.fspath(path)!r} cannot be written as a picture: end its name in .png or .svg.")
    write_bytes(Path(path), render(figure, kind))


def style(index: int) -> dict[str, Any]:
    """Colour and marker of a series."""
    return {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}


def error_lengths(estimates: Sequence[Estimate]) -> list[list[float]]:
    """How far each interval reaches below and above its estimate, in the form for error bars; 0 if unknown."""
    below = [0.0 if each.low is None else max(0.0, each.value - each.low) for each in estimates]
    above = [0.0 if each.high is None else max(0.0, each.high - each.value) for each in estimates]
    return [below, above]


def shorten(label: str, max_length: int = 24) -> str:
    """A short label; the middle is cut, because names of variants differ at their ends."""
    end = (max_length - 1) // 2
    return label if len(label) <= max_length else f"{label[: max_length - 1 - end]}…{label[-end:]}"


def rows_height(rows: int, row: float = ROW) -> float:
    """Height in inches for some labelled rows."""
    return min(max(rows * row, 1.0), MAX_INCHES)


def label_rows(axis: "Axis", labels: Sequence[str], inches: float) -> None:
    """Labels the positions 0, 1, … of an axis: all of them, or every n-th one, and then the axis says so.

    Args:
        axis: Horizontal or vertical axis.
        labels: One per position.
        inches: Length of the axis.
    """
    step = max(1, math.ceil(len(labels) * 0.12 / inches))
    positions = range(0, len(labels), step)
    # A dollar sign in a name must not start a formula.
    axis.set_ticks(
        positions, [shorten(labels[at]) for at in positions], fontsize=LABEL_SIZE, parse_math=False, minor=False
    )
    if step > 1:
        axis.set_label_text(f"every {_ordinal(step)} of {len(labels)} is labelled")


def scale_of(values: Sequence[float]) -> dict[str, Any]:
    """A scale that tells increases apart, as arguments of `set_xscale` and `set_yscale`.

    It is logarithmic if all values are positive and differ more than twentyfold, linear if only a tenth of them, or a
    single one, is far below the others: these would leave little room for the rest. If some are not positive, but one
    is more than twenty times the median size, it is linear around zero and logarithmic beyond. Values that are not
    finite are not drawn.
    """
    sizes = [abs(value) for value in values if value and math.isfinite(value)]
    if not sizes:
        return {"value": "linear"}
    if min(values) > 0:
        low = sorted(sizes)[max(1, len(sizes) // 10)] if len(sizes) > 2 else min(sizes)
        if max(sizes) <= 20 * min(size for size in sizes if 20 * size >= low):
            return {"value": "linear"}
        if 20 * min(sizes) >= low:
            return {"value": "log"}
        return {"value": "symlog", "linthresh": 10.0 ** math.floor(math.log10(low))}
    typical = statistics.median(sizes)
    if max(sizes) <= 20 * typical:
        return {"value": "linear"}
    # Ticks beyond zero are at powers of ten, so the one at the end of the linear part does not touch that of zero.
    return {"value": "symlog", "linthresh": 10.0 ** math.floor(math.log10(typical))}


def _ordinal(number: int) -> str:
    return {2: "2nd", 3: "3rd"}.get(number, f"{number}th")
