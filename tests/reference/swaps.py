"""Slow reference for swaps within a row: every pair is looked at in turn, and every weight for itself."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def refine(
    weight: Array, pruned: NDArray[np.bool_], gram: Array, run: int | None, candidates: int, tolerance: float
) -> NDArray[np.bool_]:
    """Makes swaps of one row, in rounds, until none gains enough; both columns of a swap lie in one run of columns.

    A round looks at the columns that promise most by themselves, or at the best swap of the runs that promise most. Up
    to half as many swaps are made among them, each the best after those before, without using a column twice.
    """
    mask = pruned.copy()
    slope = (weight * mask) @ gram
    alone = weight * weight * gram.diagonal()
    least = -tolerance * alone.sum()
    columns = range(len(mask))

    def joint(j: int, k: int) -> float:
        return 2 * (weight[j] * weight[k] * gram[j, k])  # type: ignore[no-any-return]

    while True:
        linear = 2 * weight * slope
        changes = [alone[j] - linear[j] if mask[j] else alone[j] + linear[j] for j in columns]
        pairs = _pairs(mask, changes, joint, run, candidates)
        limit = len(columns) // run if run else len(columns)
        swapped: list[tuple[int, int]] = []
        for _ in range(max(1, min(candidates, limit) // 2)):
            best, swap = least, None
            for j, k in pairs:
                if all(j != back and k != out for back, out in swapped):
                    change = changes[j] + changes[k] - joint(j, k)
                    if change < best:
                        best, swap = change, (j, k)
            if swap is None:
                break
            swapped.append(swap)
            back, out = swap
            for j in columns:  # those of a kind want the same of an error, and the two kinds want opposite things
                both = joint(j, back) - joint(j, out)
                changes[j] += both if mask[j] else -both
        if not swapped:
            return mask
        for back, out in swapped:
            mask[back], mask[out] = False, True
            slope = slope + (weight[out] * gram[out] - weight[back] * gram[back])


def _pairs(
    mask: NDArray[np.bool_],
    changes: list[float],
    joint: Callable[[int, int], float],
    run: int | None,
    candidates: int,
) -> list[tuple[int, int]]:
    """The pairs that a round looks at: a column to restore, and one to prune."""
    columns = range(len(mask))
    if run is None:
        order = sorted(columns, key=lambda j: changes[j])
        back = [j for j in order if mask[j]][:candidates]
        out = [k for k in order if not mask[k]][:candidates]
        return [(j, k) for j in back for k in out]
    of_runs = []
    for start in range(0, len(mask), run):
        inside = range(start, start + run)
        pairs = [(j, k) for j in inside if mask[j] for k in inside if not mask[k]]
        of_runs.append(min((changes[j] + changes[k] - joint(j, k), j, k) for j, k in pairs))
    return [(j, k) for _, j, k in sorted(of_runs)[:candidates]]
