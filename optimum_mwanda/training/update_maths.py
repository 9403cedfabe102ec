"""What an adapter adds to a pruned matrix, as pure functions."""

import torch
from torch import Tensor

from ..utils import sum_dtype


def masked(update: Tensor, weight: Tensor) -> Tensor:
    """An update without what it would write where a matrix is zero.

    Args:
        update: `ΔW`, any shape.
        weight: `W`, the same shape.
    """
    return update.masked_fill(weight == 0, 0)


def keep_zeros(merged: Tensor, weight: Tensor) -> Tensor:
    """A merged matrix with the zeros of the matrix before, and no others.

    A weight that happens to become zero, as in low precision some do, becomes the smallest normal number instead:
    otherwise it would count as pruned from then on.

    Args:
        merged: `W′`, any shape.
        weight: `W`, the same shape.
    """
    return merged.masked_fill(merged == 0, torch.finfo(merged.dtype).tiny).masked_fill(weight == 0, 0)


def dora_update(weight: Tensor, update: Tensor, magnitude: Tensor) -> Tensor:
    """`W′ − W` of DoRA, where row `i` of `W′` is `mᵢ · (W + ΔW)ᵢ / ‖(W + ΔW)ᵢ‖` (Liu et al. 2024, arXiv 2402.09353).

    The norm counts as a constant for gradients, as section 4.3 of the paper proposes. A row of zeros, which has no
    direction, stays zero. Where both `W` and `ΔW` are zero, so is the result.

    Args:
        weight: `W`, shape `(out, in)`.
        update: `ΔW`, shape `(out, in)`.
        magnitude: `m`, shape `(out,)`.
    """
    changed = weight + update
    norm = torch.linalg.vector_norm(changed.detach(), dim=1)
    factor: Tensor = magnitude / norm.masked_fill(norm == 0, 1)
    return factor[:, None] * changed - weight


def update_norms(update: Tensor, weight: Tensor) -> tuple[float, float]:
    """The Frobenius norm of an update, and of the part that falls where a matrix is zero.

    Args:
        update: `ΔW`, any shape.
        weight: `W`, the same shape.
    """
    lost = update.masked_fill(weight != 0, 0)
    return _norm(update), _norm(lost)


def _norm(matrix: Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix, dtype=sum_dtype(matrix.device)))
