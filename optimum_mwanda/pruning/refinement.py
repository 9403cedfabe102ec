"""Mask refinement: swaps improve the choice of weights by the layer's error; no weight changes its value."""

import torch
from torch import Tensor
from torch.nn import functional

from .swaps import best_swaps, joint_in_runs

_ON_CPU, _ELSEWHERE = 2**20, 2**24
"""Entries that are compared at a time; smaller parts would stay in a cache, but there are few rounds and many calls."""


@torch.no_grad()
def refine_mask(
    weight: Tensor,
    pruned: Tensor,
    gram: Tensor,
    *,
    run: int | None = None,
    candidates: int = 16,
    rounds: int = 1000,
    tolerance: float = 1e-6,
) -> Tensor:
    """Swaps kept and pruned weights of the same row as long as this lowers the layer's error.

    The error of row `i` is `‖x·d‖² = dᵀGd` summed over tokens `x`, where `d` holds the pruned weights of the row and
    zeros elsewhere. With `h = Gd`, restoring weight `j` and pruning `k` instead changes it by

        w_j² G_jj − 2 w_j h_j + w_k² G_kk + 2 w_k h_k − 2 w_j w_k G_jk.

    In every round, every row looks at the `candidates` weights to restore and the `candidates` weights to prune that
    are best without the last term. Among them it makes its best swap, then the best one after that, and so on, as long
    as one gains, up to half as many. With as many candidates as columns, no single swap can improve the result (as in
    SparseSwaps, arXiv 2512.10922). The result is deterministic, and the number of pruned weights per row does not
    change.

    Args:
        weight: `W`, shape `(out, in)`.
        pruned: Boolean, shape `(out, in)`, True where pruned.
        gram: `G`, symmetric and positive semidefinite, shape `(in, in)`; computed in its dtype and on its device.
        run: M of an N:M pattern: swaps stay within runs of M consecutive inputs. None: anywhere in the row.
        candidates: Weights to try on either side of a swap; with `run`, runs of each row to try the best swap of.
        rounds: Most rounds.
        tolerance: Least gain of a swap, as a share of `Σ_j w_j² G_jj` of its row, so that rounding cannot undo gains.

    Returns:
        Boolean, shape `(out, in)`: a mask with no higher error in any row.
    """
    matrix, result = weight.to(gram), pruned.to(gram.device)
    tried = min(candidates, matrix.shape[1] // (run or 1))
    size = max(tried**2, matrix.shape[1] * (run or 1))
    chunks = zip(*(torch.split(each, max(1, _ELSEWHERE // size)) for each in (matrix, result)), strict=True)
    rows = rows_at_a_time(matrix.shape[1], tried, run, gram.device)
    found = []
    for chunk in chunks:
        slope = torch.mul(*chunk) @ gram
        for w, mask, h in zip(*(torch.split(each, rows) for each in (*chunk, slope)), strict=True):
            found.append(_refine_rows(w, mask, h, gram, run, tried, rounds, tolerance))
    return torch.cat(found).to(pruned.device)


def shrink_gram(gram: Tensor, shrinkage: float, ridge: float) -> Tensor:
    """Regularises a Gram matrix, so that it trusts the calibration text less.

    A mask refined on `G` itself overfits to the calibrated languages: correlations that they do not share with other
    languages, and channels that they do not use, decide which weights go. So correlations are weakened, and every
    channel gets at least some energy: `G' = (1 − γ)·G + γ·diag(G) + δ·median(diag G)·I`. With `γ = 1, δ = 0` the best
    mask is that of Wanda per row; as `δ` grows, it becomes that of magnitude.

    Args:
        gram: `G`, shape `(in, in)`.
        shrinkage: `γ`, in [0, 1].
        ridge: `δ`, a multiple of the median over all channels that are ever active.

    Returns:
        `G'`, shape `(in, in)`, positive semidefinite if `gram` is.
    """
    diagonal = gram.diagonal()
    shrunk = (1 - shrinkage) * gram
    shrunk.diagonal().copy_(diagonal + ridge * median_energy(gram))
    return shrunk


def median_energy(gram: Tensor) -> Tensor:
    """Median of the diagonal of a Gram matrix over the channels that are ever active, 0 if none is; a scalar.

    It is the median because a few channels with huge activations may dominate the mean, and only over active channels
    because it would be 0 if most are dead.
    """
    diagonal = gram.diagonal()
    active = diagonal[diagonal > 0]
    return active.median() if len(active) else diagonal.new_zeros(())


def rows_at_a_time(columns: int, tried: int, run: int | None, device: torch.device) -> int:
    """Of how many rows the swaps are compared at a time."""
    entries = _ON_CPU if device.type == "cpu" else _ELSEWHERE
    return max(1, entries // max(tried**2, columns * (run or 1)))


def _refine_rows(
    weight: Tensor,
    pruned: Tensor,
    slope: Tensor,
    gram: Tensor,
    run: int | None,
    tried: int,
    rounds: int,
    tolerance: float,
) -> Tensor:
    result, pruned = pruned.clone(), pruned.clone()
    alone = weight.square() * gram.diagonal()
    least = -tolerance * alone.sum(1, keepdim=True)
    # The change of the error by each weight alone is this plus `signed * slope`.
    restore, remove = alone.masked_fill(~pruned, torch.inf), alone.masked_fill(pruned, torch.inf)
    signed = torch.where(pruned, -2 * weight, 2 * weight)
    joint = None if run is None else joint_in_runs(weight, gram, run)
    live = torch.arange(len(weight), device=weight.device)
    for _ in range(rounds):
        linear = signed * slope
        back, out, made = best_swaps(weight, restore + linear, remove + linear, gram, tried, least, joint)
        (better,) = torch.where(made[:, 0])  # the only wait for a GPU in a round
        if len(better) < len(live):  # rows that are done leave, and the others close up
            result[live] = pruned
            state = (live, weight, pruned, slope, alone, least, restore, remove, signed, back, out, made)
            live, weight, pruned, slope, alone, least, restore, remove, signed, back, out, made = (
                each.index_select(0, better) for each in state
            )
            joint = None if joint is None else joint.index_select(0, better)
        if not len(live):
            break
        back, out = torch.where(made, back, back[:, :1]), torch.where(made, out, out[:, :1])
        restored, removed = weight.gather(1, back), weight.gather(1, out)
        change = torch.cat([removed, -restored], 1).mul_(made.repeat(1, 2))
        slope += functional.embedding_bag(torch.cat([out, back], 1), gram, per_sample_weights=change, mode="sum")
        pruned.scatter_(1, back, False).scatter_(1, out, True)
        signed.scatter_(1, back, 2 * restored).scatter_(1, out, -2 * removed)
        restore.scatter_(1, back, torch.inf).scatter_(1, out, alone.gather(1, out))
        remove.scatter_(1, back, alone.gather(1, back)).scatter_(1, out, torch.inf)
    result[live] = pruned
    return result
