"""Sums over several processes."""

from collections.abc import Callable

from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""Adds up a tensor over all processes that share a calibration and gives each of them the total.

Every process calls it equally often, in the same order, with tensors of the same shapes; checks and divisions by a
total come afterwards. `None` stands for a single process.
"""
