"""Pictures of what pruning did, as PNG or SVG files; they need matplotlib (`pip install matplotlib`).

Each `plot_…` draws one file. The function with the same name that ends in `_figure`, in the same module, gives the
matplotlib figure behind it, to change it or show it in a notebook.
"""

from .activations import plot_block_correlation, plot_language_activity, plot_language_correlation
from .curves import CurvePoint, plot_sparsity_curves
from .degradation import plot_degradation
from .sparsity import plot_block_sparsity

__all__ = [
    "CurvePoint",
    "plot_block_correlation",
    "plot_block_sparsity",
    "plot_degradation",
    "plot_language_activity",
    "plot_language_correlation",
    "plot_sparsity_curves",
]
