"""Slow reference for the codes of compressed checkpoints, as their page describes them: bit by bit."""

from itertools import combinations


def numbers_to_bytes(numbers: list[int], bits: int) -> bytes:
    """Numbers of so many bits one after the other; the lowest bit of a number and of a byte comes first."""
    spread = [number >> bit & 1 for number in numbers for bit in range(bits)]
    spread += [0] * (-len(spread) % 8)
    return bytes(sum(spread[start + bit] << bit for bit in range(8)) for start in range(0, len(spread), 8))


def code_of_runs(nonzero: list[bool], kept: int, run: int) -> tuple[bytes, list[int]]:
    """The code of an N:M pattern, and the places of the values that are stored with it.

    Where a run has fewer non-zeros than it keeps, its first zeros are kept too.
    """
    choices = sorted(sum(1 << place for place in places) for places in combinations(range(run), kept))
    numbers, stored = [], []
    for start in range(0, len(nonzero), run):
        chosen = [place for place in range(run) if nonzero[start + place]]
        others = [place for place in range(run) if place not in chosen]
        chosen = sorted(chosen + others[: kept - len(chosen)])
        numbers.append(choices.index(sum(1 << place for place in chosen)))
        stored += [start + place for place in chosen]
    bits = max(len(f"{len(choices) - 1:b}"), 1)
    return numbers_to_bytes(numbers, bits), stored
