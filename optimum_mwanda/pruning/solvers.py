"""Criteria that choose the mask and the new values together: applies the solvers as `MWandaConfig` says."""

from torch import Tensor

from ..configuration import MWandaConfig
from . import reconstruction
from .selection import select, select_part


def sparsegpt(
    weight: Tensor, gram: Tensor, sparsity: float, config: MWandaConfig, factors: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mask and new values by SparseGPT; its scores are errors, so the factors of rows count squared."""
    damping: float = config.damping  # type: ignore[assignment]
    squares = 1 if factors is None else factors.to(gram).square()

    def choose(scores: Tensor, first: int) -> Tensor:
        return select_part(scores * squares, first, sparsity, config)

    run = None if config.kept_of is None else config.kept_of[1]
    values, pruned = reconstruction.sparsegpt(weight, gram, choose, every=run, damping=damping)
    return pruned, values


def alps(
    weight: Tensor, gram: Tensor, sparsity: float, config: MWandaConfig, factors: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mask and new values by ALPS.

    Multiplying rows of the weight by factors would multiply all that it computes for them by the same, so it is enough
    to weigh the scores.
    """
    damping: float = config.damping  # type: ignore[assignment]
    weighed = 1 if factors is None else factors.to(gram)

    def choose(scores: Tensor) -> Tensor:
        return select(scores * weighed, sparsity, config)

    start, pruned = reconstruction.admm(weight, gram, choose, damping=damping)
    return pruned, reconstruction.reconstruct(weight, pruned, gram, start=start, damping=damping)
