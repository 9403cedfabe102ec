"""Masks from scores by numpy, which selects and compares float32 and float64 with vector instructions."""

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

_CACHED = 2**18
"""Scores that are selected among at a time, so that a CPU has them and their mask in its cache."""
_SAMPLE = 2**14
"""Scores of a long row that tell about where the rank lies that is looked for."""
_CACHED_RUNS = 2**16
"""Entries whose comparisons stay in the cache of a CPU; a multiple of every run in `WORDS`."""
WORDS = {2: np.uint16, 4: np.uint32, 8: np.uint64} if sys.byteorder == "little" else {}
"""Run to the type of a number with a byte for each of its entries."""


def prune_lowest(scores: Scores, count: int) -> Mask:
    """As `masks.prune_lowest`; `count` is not 0."""
    pruned = np.empty(scores.shape, dtype=np.bool_)
    if scores.shape[1] > _CACHED:
        for row, mask in zip(scores, pruned, strict=True):
            _mark_in_long_row(row, count, mask)
        return pruned
    size = _CACHED // max(1, scores.shape[1])
    for start in range(0, len(scores), size):
        _mark_in_rows(scores[start : start + size], count, pruned[start : start + size])
    return pruned


def prune_runs(scores: Scores, count: int) -> Mask:
    """Marks the `count` lowest of every row of 2, 4 or 8; among equal scores, the leftmost goes first.

    The ranks of a row are the bytes of one number. Each entry is compared with that which is 1, 2, ... places to the
    right of it, all rows in one go, so that nothing is transposed; what crosses the end of a row is masked out. Of a
    pair one goes first, so it adds 1 to the rank of either side: the right one gets what the comparison says, and the
    left one, whose rank begins at the number of entries to its right, loses as much.
    """
    run = scores.shape[1]
    word: Any = WORDS[run]
    flat, size = scores.reshape(-1), min(_CACHED_RUNS, scores.size)
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
    return result.reshape(scores.shape)


def _mark_in_rows(scores: Scores, count: int, pruned: Mask) -> None:
    threshold = np.partition(scores, count - 1, axis=1)[:, count - 1, None]
    np.less_equal(scores, threshold, out=pruned)
    (tied,) = np.nonzero(np.count_nonzero(pruned, axis=1) > count)
    if len(tied):
        below = scores[tied] < threshold[tied]
        equal = pruned[tied] & ~below
        missing = count - below.sum(1, keepdims=True)
        pruned[tied] = below | (equal & (equal.cumsum(1) <= missing))


def _mark_in_long_row(scores: Scores, count: int, pruned: Mask) -> None:
    threshold = _kth_lowest(scores, count)
    np.less_equal(scores, threshold, out=pruned)
    if too_many := np.count_nonzero(pruned) - count:
        pruned[np.flatnonzero(scores == threshold)[-too_many:]] = False


def _kth_lowest(scores: Scores, count: int) -> Any:
    """The `count`-th lowest of many scores.

    It lies between two scores of a sample, but for rare cases, and only what is between them is selected among.
    """
    sample = np.sort(scores[:: len(scores) // _SAMPLE | 1])  # an odd step meets all columns of most matrices
    place, margin = count * len(sample) // len(scores), round(2 * len(sample) ** 0.5)
    low = sample[place - margin] if place >= margin else -np.inf
    high = sample[place + margin] if place + margin < len(sample) else np.inf
    rank, among = count - 1, []
    for start in range(0, len(scores), _CACHED):
        part = scores[start : start + _CACHED]
        below = part < low
        rank -= int(np.count_nonzero(below))
        among.append(part.compress((part <= high) & ~below))
    between = np.concatenate(among)
    if 0 <= rank < len(between):
        return np.partition(between, rank)[rank]
    return np.partition(scores, count - 1)[count - 1]


def _bytes(values: Iterable[int]) -> int:
    """The number whose bytes these are, the lowest first."""
    return int.from_bytes(bytes(values), "little")
