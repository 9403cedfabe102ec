"""Slow reference for swaps that look at the errors of all rows together: every sum is computed from its definition."""

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def joint_error(weight: Array, pruned: Mask, gram: Array, outputs: Array) -> float:
    """`tr(B D G Dᵀ)` as a sum over pairs of rows."""
    lost = np.where(pruned, weight, 0.0)
    rows = range(len(weight))
    return float(sum(outputs[i, k] * (lost[i] @ gram @ lost[k]) for i in rows for k in rows))


def refine(
    weight: Array, pruned: Mask, gram: Array, outputs: Array, run: int, rounds: int, tolerance: float, seed: int
) -> Mask:
    """Half of the rows make their best swap within runs of columns, or as many of the best of them as pay together."""
    generator = torch.Generator().manual_seed(seed)
    mask, idle = pruned.copy(), 0
    for _ in range(rounds):
        drawn = torch.randperm(len(weight), generator=generator)[: (len(weight) + 1) // 2].tolist()
        now = joint_error(weight, mask, gram, outputs)
        found = []
        for i in drawn:
            least = -tolerance * outputs[i, i] * float(weight[i] ** 2 @ np.diag(gram))
            best, swap = least, None
            for back in np.flatnonzero(mask[i]):
                for out in np.flatnonzero(~mask[i]):
                    if back // run == out // run:
                        change = joint_error(weight, swapped(mask, [(i, back, out)]), gram, outputs) - now
                        if change < best:
                            best, swap = change, (i, back, out)
            if swap is not None:
                found.append((best, swap))
        idle = 0 if found else idle + 1
        if idle == 4:
            break
        found.sort(key=lambda pair: pair[0])
        while len(found) > 1:
            together = joint_error(weight, swapped(mask, [swap for _, swap in found]), gram, outputs) - now
            if together < sum(change for change, _ in found) / 2:
                break
            found = found[: len(found) // 2]
        mask = swapped(mask, [swap for _, swap in found])
    return mask


def swapped(mask: Mask, swaps: list[tuple[int, int, int]]) -> Mask:
    """The mask after some swaps."""
    result = mask.copy()
    for row, back, out in swaps:
        result[row, back], result[row, out] = False, True
    return result
