"""Slow reference for swaps within a row: every pair is looked at in turn, with the operations in the written order."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def refine(
    weight: Array, pruned: NDArray[np.bool_], gram: Array, run: int, candidates: int, tolerance: float
) -> NDArray[np.bool_]:
    """Makes the best swap of one row until none gains enough; both columns of a swap lie in one run of columns."""
    mask = pruned.copy()
    slope = (weight * mask) @ gram
    alone = weight * weight * gram.diagonal()
    least = -tolerance * alone.sum()
    columns = range(len(mask))
    while True:
        linear = 2 * weight * slope
        changes = [alone[j] - linear[j] if mask[j] else alone[j] + linear[j] for j in columns]
        order = sorted(columns, key=lambda j: changes[j])
        back = [j for j in order if mask[j]][:candidates]
        out = [k for k in order if not mask[k]][:candidates]
        best, swap = least, None
        for j in back:
            for k in out:
                if j // run == k // run:
                    change = changes[j] + changes[k] - 2 * (weight[j] * weight[k] * gram[j, k])
                    if change < best:
                        best, swap = change, (j, k)
        if swap is None:
            return mask
        j, k = swap
        mask[j], mask[k] = False, True
        slope = slope + (weight[k] * gram[k] - weight[j] * gram[j])
