"""Mask refinement that looks at the errors which the rows of a matrix make together; no weight changes its value."""

import torch
from torch import Tensor

from .refinement import rows_at_a_time
from .swaps import best_swap, best_swap_in_runs, joint_in_runs


@torch.no_grad()
def refine_jointly(
    weight: Tensor,
    pruned: Tensor,
    gram: Tensor,
    outputs: Tensor,
    *,
    run: int | None = None,
    candidates: int = 16,
    rounds: int = 60,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> Tensor:
    """Swaps kept and pruned weights of the same row as long as this lowers `tr(B D G Dᵀ)`.

    `D` holds the pruned weights and zeros elsewhere. `refine_mask` minimises the same with the diagonal of `B`, row by
    row. Here an error of one row may cancel another's: with `S = B D G`, restoring weight `j` of row `i` and pruning
    `k` instead changes the sum by

        B_ii (w_j² G_jj + w_k² G_kk − 2 w_j w_k G_jk) − 2 w_j S_ij + 2 w_k S_ik.

    In every round, half of the rows, drawn at random, each make their best swap. What these change together is then
    computed; as long as it is no gain, only the better half of the swaps is made. So the sum never rises. The result
    is deterministic, and the number of pruned weights per row does not change.

    Args:
        weight: `W`, shape `(out, in)`.
        pruned: Boolean, shape `(out, in)`, True where pruned.
        gram: `G`, symmetric and positive semidefinite, shape `(in, in)`; computed in its dtype and on its device.
        outputs: `B`, symmetric and positive semidefinite, shape `(out, out)`.
        run: M of an N:M pattern: swaps stay within runs of M consecutive inputs. None: anywhere in the row.
        candidates: Weights to try on either side of a swap, without `run`.
        rounds: Most rounds.
        tolerance: Least gain of a swap, as a share of `B_ii Σ_j w_j² G_jj` of its row.
        seed: For the order of the rows.

    Returns:
        Boolean, shape `(out, in)`: a mask with no higher sum.
    """
    matrix, result, outputs = weight.to(gram), pruned.to(gram.device, copy=True), outputs.to(gram)
    tried = min(candidates, matrix.shape[1])
    scaled = matrix * outputs.diagonal().clamp_min(0).sqrt()[:, None]
    alone = scaled.square() * gram.diagonal()
    min_gain = tolerance * alone.sum(1)
    slope = outputs @ ((matrix * result) @ gram)
    generator = torch.Generator().manual_seed(seed)
    idle = 0
    for _ in range(rounds):
        rows = torch.randperm(len(matrix), generator=generator)[: (len(matrix) + 1) // 2].to(gram.device)
        found = []
        for part in torch.split(rows, rows_at_a_time(matrix.shape[1], tried, run, gram.device)):
            linear = 2 * matrix[part] * slope[part]
            restore = torch.where(result[part], alone[part] - linear, torch.inf)
            remove = torch.where(result[part], torch.inf, alone[part] + linear)
            if run is None:
                found.append(best_swap(scaled[part], restore, remove, gram, tried))
            else:
                found.append(best_swap_in_runs(joint_in_runs(scaled[part], gram, run), restore, remove))
        change, back, out = map(torch.cat, zip(*found, strict=True))
        (better,) = torch.where(change < -min_gain[rows])
        idle = 0 if len(better) else idle + 1
        if idle == 4:  # what is drawn leaves out a row so often once in 16 times
            break
        order = better[change[better].argsort(stable=True)]
        rows, back, out, change = rows[order], back[order], out[order], change[order]
        moved = matrix[rows, out, None] * gram[out] - matrix[rows, back, None] * gram[back]  # their rows of ΔG
        while len(rows) > 1 and not _is_gain(matrix, outputs, moved, rows, back, out, change):
            half = len(rows) // 2
            rows, back, out, change, moved = rows[:half], back[:half], out[:half], change[:half], moved[:half]
        result[rows, back], result[rows, out] = False, True
        slope += outputs[:, rows] @ moved
    return result.to(pruned.device)


def _is_gain(
    matrix: Tensor, outputs: Tensor, moved: Tensor, rows: Tensor, back: Tensor, out: Tensor, change: Tensor
) -> bool:
    """Whether swaps of several rows together lower the sum by at least half of what they would one by one.

    To the changes `c_i` of single rows come `Σ_{i≠k} B_ik (Δ G Δᵀ)_ik`.
    """
    across = matrix[rows, out] * moved[:, out] - matrix[rows, back] * moved[:, back]
    across = outputs[rows[:, None], rows] * across
    together = across.sum() - across.diagonal().sum()
    return bool(change.sum() / 2 + together < 0)
