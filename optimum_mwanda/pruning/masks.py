"""From scores to masks: exact counts, no ties left to chance, no full sort."""

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ENTRIES = 2**22
_CACHED = 2**16
"""Entries whose comparisons stay in the cache of a CPU; a multiple of every run in `_WORDS`."""
_MOST_COMPARED = 16
"""Entries of a run up to which it is quicker to compare each with each other than to select among them."""
_WORDS = {2: np.uint16, 4: np.uint32, 8: np.uint64} if sys.byteorder == "little" else {}
"""Run to the type of a number with a byte for each of its entries."""


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
    size = max(1, _ENTRIES // max(1, scores.shape[1]))  # what is needed besides is several times as large
    threshold = torch.cat([_kth_lowest(part, count) for part in torch.split(scores, size)])
    pruned = scores <= threshold
    marked = torch.cat([part.sum(1) for part in torch.split(pruned, size)])
    (tied,) = torch.where(marked > count)  # the only wait for a GPU
    for rows in torch.split(tied, size) if len(tied) else ():
        below = scores[rows] < threshold[rows]
        equal = scores[rows] == threshold[rows]
        missing = count - below.sum(1, keepdim=True)
        pruned[rows] = below | (equal & (equal.cumsum(1) <= missing))
    return pruned


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
    if run in _WORDS and scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(_prune_by_words(runs.numpy(), run - kept)).view(scores.shape)
    parts = torch.split(runs, max(1, _ENTRIES // run))
    return torch.cat([_prune_by_rank(part, run - kept) for part in parts]).view(scores.shape)


def _prune_by_words(scores: NDArray[Any], count: int) -> NDArray[np.bool_]:
    """As `_prune_by_rank`, for rows of 2, 4 or 8: the ranks of a row are the bytes of one number.

    Each entry is compared with that which is 1, 2, ... places to the right of it, all rows in one go, so that nothing
    is transposed; what crosses the end of a row is masked out. Of a pair one goes first, so it adds 1 to the rank of
    either side: the right one gets what the comparison says, and the left one, whose rank begins at the number of
    entries to its right, loses as much. numpy does all this with vector instructions, and torch does not.
    """
    run = scores.shape[1]
    word: Any = _WORDS[run]
    flat, size = scores.reshape(-1), min(_CACHED, scores.size)
    result = np.empty(flat.shape, dtype=np.bool_)
    is_first, ranks = np.zeros(size, dtype=np.bool_), np.empty(size // run, dtype=word)
    pairs = np.empty_like(ranks)
    first = word(_bytes(run - 1 - place for place in range(run)))
    inside = [word(_bytes(place + step < run for place in range(run))) for step in range(run)]
    for start in range(0, len(flat), size or 1):
        part = flat[start : start + size]
        words = len(part) // run
        ranks[:] = first
        for step in range(1, run):
            np.less_equal(part[:-step], part[step:], out=is_first[: len(part) - step])
            np.bitwise_and(is_first.view(word), inside[step], out=pairs)
            np.multiply(pairs, word(256**step - 1), out=pairs)  # moved to the right, less what is here
            np.add(ranks, pairs, out=ranks)
        np.less(ranks[:words].view(np.uint8), count, out=result[start : start + len(part)])
    return result


def _bytes(values: Iterable[int]) -> int:
    """The number whose bytes these are, the lowest first."""
    return int.from_bytes(bytes(values), "little")


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


def _kth_lowest(scores: Tensor, count: int) -> Tensor:
    """The `count`-th lowest score of each row, shape `(rows, 1)`."""
    if scores.device.type != "cpu" or scores.dtype not in (torch.float32, torch.float64):
        return _kth_on_device(scores, count)
    # The same value: numpy partitions with vector instructions.
    return torch.from_numpy(np.partition(scores.numpy(), count - 1, axis=1)[:, count - 1, None].copy())


def _kth_on_device(scores: Tensor, count: int) -> Tensor:
    """As `_kth_lowest`. `kthvalue` would give a row to one multiprocessor of a GPU, however long it is."""
    columns = scores.shape[1]
    if 2 * count <= columns:
        return scores.topk(count, dim=1, largest=False, sorted=False).values.amax(1, keepdim=True)
    return scores.topk(columns - count + 1, dim=1, sorted=False).values.amin(1, keepdim=True)
