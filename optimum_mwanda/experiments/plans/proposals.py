"""Which plan to try next."""

import random
from collections.abc import Callable, Sequence
from typing import Protocol

from .candidates import Sparsities, Unit, descend, mutate
from .fitness import Measured

_LONGER, _SHORTER = 1.5, 0.5
"""By what a step is multiplied after a plan that was better, and after one that was not."""
_TOO_SHORT = 0.05
"""Share of the first step at which a descent has arrived."""


class Proposals(Protocol):
    """Proposes plans, one after the other."""

    def next(self, best: Sparsities, measured: Measured) -> Sparsities | None:
        """The plan to try now.

        Args:
            best: The best plan so far.
            measured: How good it is.

        Returns:
            None if there is nothing left to try.
        """


class Exchanges:
    """Lets pairs of units that are drawn by chance exchange weights.

    Args:
        units: The units.
        seed: What chance begins with.
        step: Sparsity that a unit usually gains or loses.
        bounds: Lowest and highest sparsity of a unit.
    """

    def __init__(self, units: Sequence[Unit], seed: int, step: float, bounds: tuple[float, float]) -> None:
        self._units, self._step, self._bounds = units, step, bounds
        self._rng = random.Random(seed)

    def next(self, best: Sparsities, measured: Measured) -> Sparsities:
        """The best plan, after a few exchanges."""
        return mutate(best, self._units, self._rng, self._step, self._bounds)


class Descent:
    """Goes down the slopes of all units at once, in longer steps while that helps, else in shorter ones.

    Args:
        units: The units.
        slopes: What pruning a little more of each unit costs at the best plan.
        step: How far to go at first.
        bounds: Lowest and highest sparsity of a unit.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        slopes: Callable[[Sparsities, Measured], Sequence[float]],
        step: float,
        bounds: tuple[float, float],
    ) -> None:
        self._units, self._slopes_at, self._bounds = units, slopes, bounds
        self._step, self._shortest = step, _TOO_SHORT * step
        self._from: Sparsities | None = None
        self._slopes: Sequence[float] = ()

    def next(self, best: Sparsities, measured: Measured) -> Sparsities | None:
        """A step down from the best plan; None once only tiny steps would help."""
        if best == self._from:
            self._step *= _SHORTER
        else:
            self._step *= 1.0 if self._from is None else _LONGER
            self._from, self._slopes = best, self._slopes_at(best, measured)
        if self._step < self._shortest:
            return None
        return descend(best, self._units, self._slopes, self._step, self._bounds)
