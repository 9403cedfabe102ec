"""Criteria that choose the mask and the new values together: applies the solvers as `MWandaConfig` says."""

from functools import partial

from torch import Tensor

from ..configuration import MWandaConfig
from . import reconstruction
from .selection import select, select_part


def sparsegpt(weight: Tensor, gram: Tensor, sparsity: float, config: MWandaConfig) -> tuple[Tensor, Tensor]:
    """Mask and new values by SparseGPT."""
    damping: float = config.damping  # type: ignore[assignment]
    choose = partial(select_part, sparsity=sparsity, config=config)
    run = None if config.kept_of is None else config.kept_of[1]
    values, pruned = reconstruction.sparsegpt(weight, gram, choose, every=run, damping=damping)
    return pruned, values


def alps(weight: Tensor, gram: Tensor, sparsity: float, config: MWandaConfig) -> tuple[Tensor, Tensor]:
    """Mask and new values by ALPS."""
    damping: float = config.damping  # type: ignore[assignment]
    choose = partial(select, sparsity=sparsity, config=config)
    start, pruned = reconstruction.admm(weight, gram, choose, damping=damping)
    return pruned, reconstruction.reconstruct(weight, pruned, gram, start=start, damping=damping)
