"""The triangular factor of an inverse, from which SparseGPT reads what pruning a weight costs and whom it moves."""

from typing import NamedTuple

import torch
from torch import Tensor

from .same_input import once_per_input, to_overwrite

_SIZE = 256
"""Rows and columns of a block: as few as keep the products quick, as what is left of a corner is no product."""


class InverseFactor(NamedTuple):
    """What SparseGPT needs of a Gram matrix.

    Attributes:
        upper: Upper triangular `U` with `Uᵀ U = (G + δI)⁻¹`, shape `(in, in)`; below its diagonal may be anything.
        dead: Which channels were never active, shape `(in,)`.
    """

    upper: Tensor
    dead: Tensor


@once_per_input
def inverse_factor(gram: Tensor, damping: float) -> InverseFactor:
    """Factors the inverse of a damped Gram matrix, in the memory of the Gram matrix if that is given away.

    Args:
        gram: `G`, shape `(in, in)`, symmetric and finite.
        damping: `λ` in `δ = λ · mean(diag G)`; raised tenfold up to three times while `G + δI` is not
            positive definite.

    Raises:
        FloatingPointError: If it is not with any of the dampings.
    """
    diagonal = gram.diagonal().clone()
    dead = diagonal == 0
    ridge = diagonal.mean()
    square = to_overwrite(gram)
    parts = [slice(start, min(start + _SIZE, len(gram))) for start in range(0, len(gram), _SIZE)]
    corners = [square[part, part].clone() for part in parts]
    tried = [damping, *(max(damping, 1e-3) * 10**power for power in (1, 2, 3))]
    for share in tried:
        square.diagonal().copy_(diagonal + dead + share * ridge)
        if _factor(square, parts):
            return InverseFactor(square, dead)
        for part, corner in zip(parts, corners, strict=True):
            square[part, part] = corner
            square[part, part.stop :] = square[part.stop :, part].T
    raise FloatingPointError(
        f"The Gram matrix is not positive definite, even with a damping of {tried[-1]:g}: accumulate it in "
        "float64, calibrate on more tokens, or raise the damping."
    )


def _factor(square: Tensor, parts: list[slice]) -> bool:
    """Writes `U` with `Uᵀ U = G⁻¹` on and above the diagonal of `G`, and whether there is one.

    With `R = U⁻¹`, also upper triangular, `G = R Rᵀ`. From the last corner on the diagonal to the first one: `U` in the
    corner comes from its Cholesky factor, read backwards; `R` above it takes the place of `G`, and its products are
    subtracted from what is left there; `U` to the right of it takes the place of `R`. What is below the corners stays.

    This takes half as many operations as to invert `G` by its Cholesky factor and to factor the inverse, nearly all of
    them in products of matrices, and is more exact, as the inverse itself is never rounded.
    """
    identity = torch.eye(min(_SIZE, len(square)), dtype=square.dtype, device=square.device)
    failed = torch.zeros((), dtype=torch.int32, device=square.device)
    for number in reversed(range(len(parts))):
        own = parts[number]
        corner = square[own, own]
        lower, info = torch.linalg.cholesky_ex(corner.flip(0, 1))
        failed += info
        size = len(corner)
        corner.copy_(torch.linalg.solve_triangular(lower, identity[:size, :size], upper=False).flip(0, 1))
        above = square[: own.start, own]
        above.copy_(above @ corner.T)
        for part in parts[:number]:
            square[: part.stop, part].addmm_(above[: part.stop], above[part].T, alpha=-1)
        right = (corner @ square[own, own.stop :]).neg_()
        for part in parts[number + 1 :]:
            square[own, part] = right[:, : part.stop - own.stop] @ square[own.stop : part.stop, part]
    return not failed
