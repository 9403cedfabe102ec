"""Picture of the sparsity of every block."""

import os
from typing import TYPE_CHECKING

from .block_labels import label_blocks
from .drawing import COLORS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ...record.schema import SparsityRecord


def block_sparsity_figure(record: "SparsityRecord") -> "Figure":
    """Bars with the share of zeros in every pruned block, and a line for the share in all blocks together.

    Args:
        record: The sparsity record of a pruned model.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure = new_figure(8, 3.2)
    shares = [100 * block.sparsity for block in record.blocks]
    everything = 100 * record.achieved_sparsity
    axes = figure.subplots()
    axes.bar(range(len(shares)), shares, width=0.8, color=COLORS[0])
    axes.axhline(everything, color=COLORS[1], linewidth=1, linestyle="--", label=f"all blocks: {everything:.1f} %")
    # A few blocks must not fill the width as slabs.
    room = max(0.0, (8 - len(shares)) / 2)
    axes.set(ylabel="zeros (%)", ylim=(0, 100), xlim=(-0.6 - room, len(shares) - 0.4 + room))
    label_blocks(axes, [block.name for block in record.blocks])
    figure.legend(loc="outside upper right", frameon=False)
    return figure


def plot_block_sparsity(record: "SparsityRecord", path: str | os.PathLike[str]) -> None:
    """Draws the share of zeros in every pruned block.

    Args:
        record: The sparsity record of a pruned model.
        path: File to write, `.png` or `.svg`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the path has another suffix.
    """
    save_figure(block_sparsity_figure(record), path)
