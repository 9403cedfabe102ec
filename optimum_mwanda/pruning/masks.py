"""From scores to masks: exact counts, no ties left to chance, no full sort."""

import torch
from torch import Tensor

from . import masks_on_cpu

_ENTRIES = 2**22
_MOST_COMPARED = 16
"""Entries of a run up to which it is quicker to compare each with each other than to select among them."""


def prune_lowest(scores: Tensor, count: int) -> Tensor:
    """Marks the `count` lowest scores of every row; among equal scores, the leftmost goes first.

    Args:
        scores: Shape `(rows, columns)`, without NaN.
        count: Entries to mark per row, in `[0, columns]`.

    Returns:
        Boolean, shape `(rows, columns)`, True where pruned; exactly `count` per row.
    """
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if _is_for_numpy(scores):
        return torch.from_numpy(masks_on_cpu.prune_lowest(scores.numpy(), count))
    return _prune_lowest_on_device(scores, count)


def unstructured_mask(scores: Tensor, sparsity: float, group: str) -> Tensor:
    """Prunes a share of the weights of every row, or of the whole matrix.

    Args:
        scores: Shape `(out, in)`.
        sparsity: Share to prune; the count is rounded half up.
        group: `"row"` (as Wanda) or `"matrix"` (as RIA).

    Returns:
        Boolean, shape `(out, in)`, True where pruned.
    """
    rows = scores if group == "row" else scores.reshape(1, -1)
    return prune_lowest(rows, int(sparsity * rows.shape[1] + 0.5)).view(scores.shape)


def n_of_m_mask(scores: Tensor, kept: int, run: int) -> Tensor:
    """Keeps the `kept` highest scores of every `run` consecutive inputs of a row.

    Args:
        scores: Shape `(out, in)`, `in` a multiple of `run`.
        kept: N.
        run: M.

    Returns:
        Boolean, shape `(out, in)`, True where pruned.
    """
    runs = scores.reshape(-1, run)
    if run > _MOST_COMPARED:
        return prune_lowest(runs, run - kept).view(scores.shape)
    if run in masks_on_cpu.WORDS and _is_for_numpy(scores):
        return torch.from_numpy(masks_on_cpu.prune_runs(runs.numpy(), run - kept)).view(scores.shape)
    parts = torch.split(runs, max(1, _ENTRIES // run))
    return torch.cat([_prune_by_rank(part, run - kept) for part in parts]).view(scores.shape)


def _prune_by_rank(scores: Tensor, count: int) -> Tensor:
    """As `prune_lowest`, for short rows: an entry goes if fewer than `count` others go before it."""
    columns = scores.T.contiguous()
    ranks = torch.zeros(columns.shape, dtype=torch.uint8, device=scores.device)
    for right in range(len(columns)):
        for left in range(right):
            is_first = columns[left] <= columns[right]
            ranks[right] += is_first
            ranks[left] += ~is_first
    return (ranks < count).T


def _prune_lowest_on_device(scores: Tensor, count: int) -> Tensor:
    """As `prune_lowest`, on a GPU, or for 16-bit scores."""
    size = max(1, _ENTRIES // max(1, scores.shape[1]))  # what is needed besides is several times as large
    threshold = torch.cat([_kth_on_device(part, count) for part in torch.split(scores, size)])
    pruned = scores <= threshold
    marked = torch.cat([part.sum(1) for part in torch.split(pruned, size)])
    (tied,) = torch.where(marked > count)  # the only wait for a GPU
    for rows in torch.split(tied, size) if len(tied) else ():
        below = scores[rows] < threshold[rows]
        equal = scores[rows] == threshold[rows]
        missing = count - below.sum(1, keepdim=True)
        pruned[rows] = below | (equal & (equal.cumsum(1) <= missing))
    return pruned


def _kth_on_device(scores: Tensor, count: int) -> Tensor:
    """The `count`-th lowest score of each row, shape `(rows, 1)`.

    `kthvalue` would give a row to one multiprocessor of a GPU, however long it is.
    """
    columns = scores.shape[1]
    if 2 * count <= columns:
        return scores.topk(count, dim=1, largest=False, sorted=False).values.amax(1, keepdim=True)
    return scores.topk(columns - count + 1, dim=1, sorted=False).values.amin(1, keepdim=True)


def _is_for_numpy(scores: Tensor) -> bool:
    """Whether numpy selects among them with vector instructions."""
    return scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64)
