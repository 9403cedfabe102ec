"""Plots for model cards; they need matplotlib (`pip install optimum-mwanda[plots]`)."""

import os
from collections.abc import Mapping
from typing import Any


def plot_block_sparsity(record: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draws the share of zeros in every pruned block as a PNG file.

    Args:
        record: The sparsity record of a pruned model.
        path: File to write.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install 'optimum-mwanda[plots]'.") from error
    shares = [100 * share for share in record["blocks"]["sparsity"]]
    figure = Figure(figsize=(8, 3.2), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(shares)), shares, color="#4477aa")
    axes.axhline(100 * record["achieved_sparsity"], color="#cc3311", linewidth=1, linestyle="--", label="all blocks")
    axes.set(xlabel="block", ylabel="zeros (%)", ylim=(0, 100))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper right", frameon=False)
    figure.savefig(path, format="png", metadata={"Software": None})
