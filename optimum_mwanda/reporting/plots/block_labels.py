"""An axis with the blocks of a model as positions."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .drawing import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_TICKS = 12


def label_blocks(axes: "Axes", names: Sequence[str]) -> None:
    """Numbers the blocks at the positions 0, 1, … of the horizontal axis as the model does.

    The axis says which lists of modules the numbers belong to. If there are several lists, as in an encoder-decoder, a
    line separates them, and each shows the number that it begins with.

    Args:
        axes: Axes on which the blocks are drawn.
        names: Module paths in the order of the positions, at least one, such as `model.layers.3`: the last part is the
            number. If any last part is not a number, the blocks are numbered by their positions.
    """
    parts = [name.rpartition(".")[::2] for name in names]
    if not all(number.isdecimal() for _, number in parts):
        parts = [("", str(at)) for at in range(len(names))]
    lists, numbers = zip(*parts, strict=True)
    starts = [at for at in range(len(names)) if at == 0 or lists[at] != lists[at - 1]]
    steps = (digit * 10**power for power in itertools.count() for digit in (1, 2, 5))
    step = next(each for each in steps if len(names) <= each * _MAX_TICKS)
    room = step // 2  # between the last number of a list and the first of the next
    ticks = [
        at
        for start, end in itertools.pairwise([*starts, len(names) + room])
        for at in range(start, max(start + 1, end - room), step)
    ]
    axes.set_xticks(ticks, [numbers[at] for at in ticks], parse_math=False)
    named = " | ".join(lists[at] for at in starts)
    axes.set_xlabel(shorten(f"block of {named}", 80) if named else "block", parse_math=False)
    for start in starts[1:]:
        axes.axvline(start - 0.5, color="#444444", linewidth=1)
