"""Masks with N of every M weights as numbers: which of the `C(M, N)` choices each run of M weights makes.

A table tells the numbers of all runs among sixteen weights at once, and a second one the way back. Both take 128 KB at
most.
"""

import functools
import math

import numpy as np
from numpy.typing import NDArray

WIDTH = 16
"""Weights that are looked up together."""

RUNS = (2, 4, 8, 16)
"""The M of N:M patterns; each divides `WIDTH`."""

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint16]
_WORD = np.dtype("<u2")


def bits_of_run(kept: int, run: int) -> int:
    """Bits that the number of a choice of `kept` among `run` weights takes."""
    return (math.comb(run, kept) - 1).bit_length()


def number_runs(mask: Bytes, kept: int, run: int) -> tuple[Bytes, Bytes]:
    """Numbers the choices of a mask.

    Args:
        mask: One bit per weight, the first in the lowest bit of the first byte; at most `kept` in each run are set.
        kept: N.
        run: M.

    Returns:
        The numbers, `bits_of_run` each, in bytes, and the mask in which each run has `kept` bits set: its leftmost
        others are added. Both go up to the next sixteenth weight.
    """
    numbers, masks = _tables(kept, run)
    found = numbers[_as_words(mask)]
    bits = np.unpackbits(found.view(np.uint8), bitorder="little").reshape(-1, WIDTH)
    return np.packbits(bits[:, : _bits_of_word(kept, run)], bitorder="little"), masks[found].view(np.uint8)


def mask_of_numbers(code: Bytes, kept: int, run: int) -> Bytes | None:
    """Inverse of `number_runs`, up to the next sixteenth weight; None if a number stands for no choice."""
    width = _bits_of_word(kept, run)
    whole = -(-len(code) * 8 // width) * width  # what is missing of the last word are zeros
    bits = np.unpackbits(code, count=whole, bitorder="little").reshape(-1, width)
    words = np.packbits(np.pad(bits, ((0, 0), (0, WIDTH - width))), bitorder="little").view(_WORD)
    found = _tables(kept, run)[1][words]
    return found.view(np.uint8) if found.all() else None


def most_in_a_run(mask: Bytes, run: int) -> int:
    """The most bits that are set in any run of a mask with one bit per weight."""
    return int(_fullest(run)[_as_words(mask)].max())


def _as_words(mask: Bytes) -> Words:
    """Bytes of a mask in pairs."""
    return np.pad(mask, (0, len(mask) % 2)).view(_WORD)


def _bits_of_word(kept: int, run: int) -> int:
    return WIDTH // run * bits_of_run(kept, run)


@functools.lru_cache(maxsize=8)
def _tables(kept: int, run: int) -> tuple[Words, Words]:
    """The numbers by the mask of sixteen weights, and the mask by the numbers, 0 where a number has no choice."""
    full = np.arange(1 << run)
    ones = _ones(full)
    choices = full[ones == kept]
    for _ in range(kept):
        full |= np.where(_ones(full) < kept, ~full & (full + 1), 0)
    number = np.searchsorted(choices, full).clip(max=len(choices) - 1)
    bits = bits_of_run(kept, run)
    of_mask, of_numbers = np.arange(1 << WIDTH), np.arange(1 << _bits_of_word(kept, run))
    numbers, masks, is_choice = np.zeros_like(of_mask), np.zeros_like(of_numbers), np.ones_like(of_numbers, dtype=bool)
    for place in range(WIDTH // run):
        numbers |= number[(of_mask >> (run * place)) & ((1 << run) - 1)] << (bits * place)
        chosen = (of_numbers >> (bits * place)) & ((1 << bits) - 1)
        is_choice &= chosen < len(choices)
        masks |= choices[chosen.clip(max=len(choices) - 1)] << (run * place)
    return numbers.astype(_WORD), (masks * is_choice).astype(_WORD)


@functools.lru_cache(maxsize=len(RUNS))
def _fullest(run: int) -> Bytes:
    """By the mask of sixteen weights, the most that are set in a run."""
    words = np.arange(1 << WIDTH)
    parts = np.stack([_ones((words >> start) & ((1 << run) - 1)) for start in range(0, WIDTH, run)])
    fullest: Bytes = parts.max(0).astype(np.uint8)
    return fullest


def _ones(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many bits of each number below 2¹⁶ are set."""
    return sum(((numbers >> place) & 1 for place in range(WIDTH)), start=np.zeros_like(numbers))
