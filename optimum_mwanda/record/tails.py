"""Finds names by their ends, in time and memory that grow with the names and not with their squares."""

import bisect
import itertools
from collections.abc import Iterable

MAX_CANDIDATES = 64
"""More names with one tail cannot be told apart: a model has few parts with blocks of the same names."""


class Tails:
    """Names of modules, to be found by their last parts: `b.c` is a tail of `a.b.c`.

    Args:
        names: Names, untrusted.
    """

    def __init__(self, names: Iterable[str]) -> None:
        # Sorted by their parts from the last to the first, names that share a tail stand together.
        self._reversed = sorted(map(_reversed, names))

    def sharing_most(self, name: str, shortest: int) -> list[str]:
        """The names that share the longest tail with a name.

        Args:
            name: Any name.
            shortest: Characters that the tail must have.

        Returns:
            All of them, in the order of the names; none if no tail is long enough, or if they are too many.
        """
        key = _reversed(name)
        place = bisect.bisect_left(self._reversed, key)
        neighbours = self._reversed[max(place - 1, 0) : place + 1]
        shared = max((_shared(key, other) for other in neighbours), key=len, default="")
        if not shared or len(shared) - 1 < shortest:
            return []
        end = bisect.bisect_left(self._reversed, shared[:-1] + chr(ord(".") + 1))
        start = bisect.bisect_left(self._reversed, shared)
        return [] if end - start > MAX_CANDIDATES else sorted(map(_restored, self._reversed[start:end]))


def _reversed(name: str) -> str:
    """`c.b.a.` of `a.b.c`: the point ends every part, so that a common beginning can be cut at parts."""
    return ".".join(reversed(name.split("."))) + "."


def _restored(key: str) -> str:
    return ".".join(reversed(key[:-1].split(".")))


def _shared(one: str, other: str) -> str:
    """The beginning that two keys share, in whole parts."""
    pairs = zip(one.split("."), other.split("."), strict=False)
    return "".join(f"{part}." for part, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
