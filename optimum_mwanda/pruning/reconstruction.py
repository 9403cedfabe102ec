"""Reconstruction: new values for the remaining weights, as pure functions; equations are in `docs/method.md`.

Every function works on one matrix `W`, `(out, in)`, and the Gram matrix `G = Xᵀ X`, `(in, in)`, of its input. The error
of a layer is `‖(W − W') Xᵀ‖² = tr((W − W') G (W − W')ᵀ)`. Everything is computed in the type of the Gram matrix and on
its device; float64 is best if the device has it. A mask is True where a weight is pruned.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..utils import sum_dtype
from .inverse_factor import inverse_factor
from .refinement import median_energy

Select = Callable[[Tensor], Tensor]
SelectPart = Callable[[Tensor, int], Tensor]

_NEAR = 16
"""Columns that are updated one by one; those behind them follow in one product."""


def layer_error(change: Tensor, gram: Tensor) -> float:
    """`tr(D G Dᵀ)`: by how much the outputs of a matrix differ if its weights differ by `D`, summed over tokens.

    Args:
        change: `D`, shape `(out, in)`.
        gram: `G`, shape `(in, in)`.
    """
    change = change.to(gram.dtype)
    return float(((change @ gram) * change).sum(dtype=sum_dtype(gram.device)))


def reconstruct(
    weight: Tensor,
    pruned: Tensor,
    gram: Tensor,
    *,
    start: Tensor | None = None,
    damping: float = 0.01,
    iterations: int = 100,
    tolerance: float = 1e-7,
) -> Tensor:
    """Updates the remaining weights to minimise the layer error: the OBS solve for a given mask.

    Each row solves `(G + δI)_SS w_S = (B + δW)_S` on its support `S`, with `B = W G` and `δ = λ · median(diag G)`:
    damping pulls towards the dense weights, most strongly where the calibrated languages say little. A channel that is
    never active is not damped and keeps its weights. All rows are solved at once by conjugate gradients,
    preconditioned with the diagonal, with one matrix product per iteration. The unknown is `W' − W`, because a
    difference of outputs would drown in the rounding of the largest channel.

    The solution lowers the layer error without damping too, because no weights that the mask allows are nearer to the
    dense ones than the masked weights. A row keeps its masked weights if its stored values do not lower the error, or
    by no more than rounding could explain.

    Args:
        weight: `W`, shape `(out, in)`.
        pruned: Mask, shape `(out, in)`.
        gram: `G`, shape `(in, in)`, positive semi-definite.
        start: Values to start from, shape `(out, in)`, as given by `admm`; None: the masked weights.
        damping: `λ`.
        iterations: Most iterations.
        tolerance: A row is done once its squared preconditioned residual has fallen by this factor. The default ends
            about 0.1 % above the least objective at worst, also at a damping of 0.01, where 1e-5 ends several percent
            above it.

    Returns:
        `W'`, shape and type of `W`, exactly zero where pruned.

    Raises:
        FloatingPointError: If the Gram matrix or the weights are not finite.
    """
    _check_finite(gram, weight)
    dense = weight.to(gram.dtype)
    lost = torch.where(pruned, -dense, 0.0)
    offset = lost
    if start is not None:
        offset = torch.where(pruned | (gram.diagonal() <= 0), lost, start.to(gram.dtype) - dense)
    damped = gram + torch.diag(_ridge(gram, damping))
    offset = _conjugate_gradients(damped, offset, pruned, iterations, tolerance)
    masked = weight.masked_fill(pruned, 0)
    update = (weight + offset).masked_fill(pruned, 0).to(weight.dtype)
    wide = torch.promote_types(weight.dtype, gram.dtype)
    change = (update.to(wide) - masked).to(gram.dtype)
    return torch.where(_lowers_error(change, lost, gram), update, masked)


def _conjugate_gradients(gram: Tensor, offset: Tensor, pruned: Tensor, iterations: int, tolerance: float) -> Tensor:
    """Minimises `o G oᵀ` for every row over the entries of `o` that are not pruned; each step lowers it."""
    inverse = torch.where(gram.diagonal() > 0, 1 / gram.diagonal(), 0.0)
    kept = ~pruned  # to multiply by it is quicker than to ask for each entry whether it is to be filled
    residual = -(offset @ gram).mul_(kept)
    direction = residual * inverse
    size = (residual * direction).sum(1, keepdim=True)
    enough = tolerance * size
    for _ in range(iterations):
        active = size > enough
        if not active.any():
            break
        image = (direction @ gram).mul_(kept)
        curvature = (direction * image).sum(1, keepdim=True)
        step = torch.where(active & (curvature > 0), size / curvature, 0.0)
        offset = offset + step * direction
        residual = residual - step * image
        scaled = residual * inverse
        before, size = size, (residual * scaled).sum(1, keepdim=True)
        direction = scaled + torch.where(active, size / before, 0.0) * direction
    return offset


def _lowers_error(change: Tensor, lost: Tensor, gram: Tensor) -> Tensor:
    """Whether `(c + l) G (c + l)ᵀ < l G lᵀ` for the change `c` and the loss `l` of each row, whatever the rounding.

    The difference is `c G (c + 2l)ᵀ`. As `|G_jk| ≤ √(G_jj G_kk)`, the product below bounds the sum of its terms. The
    measured rounding was at most half an epsilon of this product, from 64 to 12,288 channels.

    Returns:
        Boolean, shape `(out, 1)`; False where a change is not finite.
    """
    across = change + 2 * lost
    gained = (change * (across @ gram)).sum(1, keepdim=True)
    norm = gram.diagonal().clamp_min(0).sqrt()[:, None]
    terms = (change.abs() @ norm) * (across.abs() @ norm)
    return gained < -2 * torch.finfo(gram.dtype).eps * terms


def admm(
    weight: Tensor,
    gram: Tensor,
    select: Select,
    *,
    damping: float = 0.01,
    iterations: int = 200,
) -> tuple[Tensor, Tensor]:
    """Chooses a mask together with the weights, by the alternating direction method of multipliers of ALPS.

    Minimises the layer error over sparse weights by splitting `W' = D` (arXiv 2406.07831): `W'` fits the outputs, `D`
    is sparse, and a penalty `ρ` that grows as the mask settles brings them together until the mask stops changing. How
    much the mask has moved is counted on one side, as the weights that were given up; the published code also counts
    those that came back, which are as many, and so raises the penalty as if twice as many had moved. Channels are first
    scaled to a unit diagonal of `G`, so that `select` compares Wanda's scores of the current weights. Follow it with
    `reconstruct`.

    The published code decomposes `G` into eigenvectors once and multiplies with them twice per iteration. Here each
    penalty has an inverse of its own, by Cholesky, and an iteration one product: less work, and nearer to float64.

    Args:
        weight: `W`, shape `(out, in)`.
        gram: `G`, shape `(in, in)`, positive semi-definite.
        select: Gives the mask for scores of shape `(out, in)`; the number pruned must not depend on the scores.
        damping: `λ`, as for `reconstruct`.
        iterations: Most iterations, with one matrix product each; it usually ends after 30 to 60. Every third one
            changes the penalty.

    Returns:
        `D`, shape `(out, in)`, zero where pruned, and the mask.

    Raises:
        FloatingPointError: If the Gram matrix or the weights are not finite.
    """
    dense = weight.to(gram.dtype)
    wanted = dense @ gram
    _check_finite(gram, wanted)
    ridge = _ridge(gram, damping)
    norm = (gram.diagonal() + ridge).sqrt()
    scale = torch.where(norm > 0, norm, 1.0)
    scaled = (gram + torch.diag(ridge)) / scale / scale[:, None]
    aim = (wanted + ridge * dense) / scale
    pruned = select((dense * norm).abs())
    sparse = (dense * norm).masked_fill(pruned, 0)
    dual = torch.zeros_like(sparse)
    kept = int((~pruned).sum())
    penalty, earlier = 0.1, pruned
    inverse = _inverse(scaled, penalty)
    for iteration in range(1, iterations + 1):
        fitted = (aim + penalty * sparse - dual) @ inverse
        free = fitted + dual / penalty
        pruned = select(free.abs())
        sparse = free.masked_fill(pruned, 0)
        dual = dual + penalty * (fitted - sparse)
        if iteration % 3 == 0:
            moved = int((pruned & ~earlier).sum())
            if not moved:
                break
            penalty *= 1.3 if moved > 0.1 * kept else 1.2 if moved > 0.005 * kept else 1.1
            earlier = pruned
            inverse = _inverse(scaled, penalty)
    return sparse / scale, pruned


def sparsegpt(
    weight: Tensor,
    gram: Tensor,
    select: SelectPart,
    *,
    every: int | None = None,
    block_size: int = 128,
    damping: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """SparseGPT (arXiv 2301.00774, algorithm 1): masks and updates from left to right in one sweep over the columns.

    With the upper Cholesky factor `U` of `(G + δI)⁻¹`, weight `j` of a row scores `w_j² / U_jj²`, and pruning it moves
    the columns right of it by `−w_j / U_jj · U_j`. Columns right of the block are updated at the end of the block, and
    those inside of it 16 columns, or some runs of an N:M pattern, at a time.

    Args:
        weight: `W`, shape `(out, in)`.
        gram: `G`, shape `(in, in)`.
        select: Gives the mask for scores of shape `(out, columns)` that begin at the given column of `W`.
        every: Number of columns to select at once when the sweep reaches them: M for an N:M pattern. None: a block.
        block_size: Columns per block, lowered to a multiple of `every`.
        damping: `λ` in `δ = λ · mean(diag G)`; raised tenfold up to three times while `G + δI` is not
            positive definite.

    Returns:
        `W'`, shape and type of `W`, exactly zero where pruned, and the mask.

    Raises:
        FloatingPointError: If the Gram matrix is not finite, or not positive definite with any of the dampings.
    """
    _check_finite(gram, weight)
    upper, dead = inverse_factor(gram, damping)
    # A column of the matrix is a row here, and lies together in memory.
    free = weight.to(gram.dtype).T.clone(memory_format=torch.contiguous_format)
    free.masked_fill_(dead[:, None], 0)  # dead channels go first
    pruned = torch.empty_like(weight, dtype=torch.bool)
    near = _NEAR if every is None else max(_NEAR // every, 1) * every
    every = every or block_size
    block_size = max(block_size // every, 1) * every
    for start in range(0, len(gram), block_size):
        part, marked = free[start : start + block_size], pruned[:, start : start + block_size]
        stop = start + len(part)
        scale = upper.diagonal()[start:stop, None]
        moves = upper[start:stop, start:] / scale
        gone, errors = torch.empty_like(part), torch.empty_like(part)
        for begin in range(0, len(part), near):
            end = min(begin + near, len(part))
            for column in range(begin, end):
                if column % every == 0:
                    ahead = slice(column, column + every)
                    scores = (part[ahead] / scale[ahead]).square_().T.contiguous()
                    mask = select(scores, start + column)
                    marked[:, ahead], gone[ahead] = mask, mask.T
                torch.mul(part[column], gone[column], out=errors[column])
                part[column + 1 : end].addr_(moves[column, column + 1 : end], errors[column], alpha=-1)
            part[end:].addmm_(moves[begin:end, end : len(part)].T, errors[begin:end], alpha=-1)
        part -= errors  # what is pruned is its own error, so exactly zero is left of it
        free[stop:].addmm_(moves[:, len(part) :].T, errors, alpha=-1)
    return free.T.to(weight.dtype), pruned


def _ridge(gram: Tensor, damping: float) -> Tensor:
    """`δ = λ · median(diag G)` for every channel that is ever active, 0 for the others; shape `(in,)`."""
    return torch.where(gram.diagonal() > 0, damping * median_energy(gram), 0.0)


def _inverse(gram: Tensor, penalty: float) -> Tensor:
    """`(G + ρI)⁻¹`."""
    raised = gram.clone()
    raised.diagonal().add_(penalty)
    factor, failed = torch.linalg.cholesky_ex(raised)
    if not failed:
        return torch.cholesky_inverse(factor)
    values, vectors = torch.linalg.eigh(gram)  # rounding has taken a value further below zero than the penalty is above
    inverse: Tensor = (vectors / (values.clamp_min(0) + penalty)) @ vectors.T
    return inverse


def _check_finite(gram: Tensor, other: Tensor) -> None:
    if not _is_finite(gram).logical_and_(_is_finite(other)):
        raise FloatingPointError("The Gram matrix or the weights hold NaN or infinite values.")


def _is_finite(values: Tensor) -> Tensor:
    least, most = torch.aminmax(values)  # which needs no copy
    return least.isfinite() & most.isfinite()
