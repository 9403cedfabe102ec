"""Mask refinement: swaps improve the choice of weights by the layer's error; no weight changes its value."""

import torch
from torch import Tensor

_ENTRIES = 2**24


def refine_mask(
    weight: Tensor,
    pruned: Tensor,
    gram: Tensor,
    *,
    run: int | None = None,
    candidates: int = 32,
    rounds: int = 1000,
    tolerance: float = 1e-6,
) -> Tensor:
    """Swaps kept and pruned weights of the same row as long as this lowers the layer's error.

    The error of row `i` is `‖x·d‖² = dᵀGd` summed over tokens `x`, where `d` holds the pruned weights of the row and
    zeros elsewhere. With `h = Gd`, restoring weight `j` and pruning `k` instead changes it by

        w_j² G_jj − 2 w_j h_j + w_k² G_kk + 2 w_k h_k − 2 w_j w_k G_jk.

    In every round, every row makes its best swap. It is searched among the `candidates` weights to restore and the
    `candidates` weights to prune that are best without the last term; with as many candidates as columns, no single
    swap can improve the result (as in SparseSwaps, arXiv 2512.10922). The result is deterministic, and the number of
    pruned weights per row does not change.

    Args:
        weight: `W`, shape `(out, in)`.
        pruned: Boolean, shape `(out, in)`, True where pruned.
        gram: `G`, symmetric and positive semidefinite, shape `(in, in)`; computed in its dtype and on its device.
        run: M of an N:M pattern: swaps stay within runs of M consecutive inputs. None: anywhere in the row.
        candidates: Weights to try on either side of a swap, without `run`.
        rounds: Most swaps per row.
        tolerance: Least gain of a swap, as a share of `Σ_j w_j² G_jj` of its row, so that rounding cannot undo gains.

    Returns:
        Boolean, shape `(out, in)`: a mask with no higher error in any row.
    """
    matrix, result = weight.to(gram), pruned.to(gram.device)
    tried = min(candidates, matrix.shape[1])
    rows = rows_at_a_time(matrix.shape[1], tried, run)
    chunks = zip(torch.split(matrix, rows), torch.split(result, rows), strict=True)
    return torch.cat([_refine_rows(w, mask, gram, run, tried, rounds, tolerance) for w, mask in chunks]).to(
        pruned.device
    )


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


def _refine_rows(
    weight: Tensor, pruned: Tensor, gram: Tensor, run: int | None, tried: int, rounds: int, tolerance: float
) -> Tensor:
    pruned = pruned.clone()
    alone = weight.square() * gram.diagonal()
    min_gain = tolerance * alone.sum(1)
    slope = (weight * pruned) @ gram
    live = torch.arange(len(weight), device=weight.device)
    for _ in range(rounds):
        if not len(live):
            break
        linear = 2 * weight[live] * slope[live]
        restore = torch.where(pruned[live], alone[live] - linear, torch.inf)
        remove = torch.where(pruned[live], torch.inf, alone[live] + linear)
        if run is None:
            change, back, out = best_swap(weight[live], restore, remove, gram, tried)
        else:
            change, back, out = best_swap_in_run(weight[live], restore, remove, gram, run)
        (better,) = torch.where(change < -min_gain[live])  # the only wait for a GPU in a round
        live, back, out = live[better], back[better], out[better]
        pruned[live, back], pruned[live, out] = False, True
        slope[live] += weight[live, out, None] * gram[out] - weight[live, back, None] * gram[back]
    return pruned


def rows_at_a_time(columns: int, tried: int, run: int | None) -> int:
    """Of how many rows the swaps are compared at a time, so that they do not take much memory."""
    return max(1, _ENTRIES // max(tried**2, columns * (run or 1)))


def best_swap(weight: Tensor, restore: Tensor, remove: Tensor, gram: Tensor, tried: int) -> tuple[Tensor, ...]:
    """Change of the error and the two columns of the best swap of every row."""
    (give, back), (take, out) = (change.topk(tried, dim=1, largest=False) for change in (restore, remove))
    joint = weight.gather(1, back)[:, :, None] * weight.gather(1, out)[:, None] * gram[back[:, :, None], out[:, None]]
    change, position = (give[:, :, None] + take[:, None] - 2 * joint).flatten(1).min(1)
    rows = torch.arange(len(weight), device=weight.device)
    return change, back[rows, position // tried], out[rows, position % tried]


def best_swap_in_run(weight: Tensor, restore: Tensor, remove: Tensor, gram: Tensor, run: int) -> tuple[Tensor, ...]:
    """As `best_swap`, but among all swaps within runs of consecutive columns."""
    columns = torch.arange(weight.shape[1], device=weight.device).view(-1, run)
    within = gram[columns[:, :, None], columns[:, None]]
    parts, give, take = (x.view(len(weight), -1, run) for x in (weight, restore, remove))
    joint = parts[..., :, None] * parts[..., None, :] * within
    separate = give[..., :, None] + take[..., None, :]
    change, position = (separate - 2 * joint).flatten(1).min(1)
    start = position // run**2 * run
    return change, start + position % run**2 // run, start + position % run
