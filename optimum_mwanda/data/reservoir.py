"""Drawing the rows of each language at random from a stream, of which only those are held that are needed."""

import hashlib
from bisect import insort
from operator import attrgetter
from typing import NamedTuple, Protocol

import numpy as np

from .packing import Packed
from .rows import Row


class Measuring(Protocol):
    """Takes the rows of a language until it has enough, and says of an encoded row how much it gives."""

    def enough(self, language: str) -> int:
        """What the rows of a language have to give together."""

    def encode(self, language: str, row: Row) -> Packed: ...

    def gives(self, encoded: Packed) -> int: ...

    def add(self, language: str, row: Row, encoded: Packed | None = None) -> None: ...

    def is_full(self, language: str) -> bool: ...


class _Drawn(NamedTuple):
    key: float
    gives: int
    row: Row
    encoded: Packed


_KEY = attrgetter("key")


class _Draw:
    """The rows of one language with the smallest keys that give enough."""

    def __init__(self, seed: int, language: str) -> None:
        # A generator per language: what is drawn does not depend on the rows of others.
        digest = hashlib.sha256(language.encode()).digest()
        self.random = np.random.default_rng([seed, *digest[:8]])
        self.seen = 0
        self.given = 0
        self.held: list[_Drawn] = []


class Reservoir:
    """Draws rows at random from the first ones of each language, and adds them to a sink at the end.

    Every row gets a random key, and the sink gets the rows in the order of their keys until it is full: those that it
    would get if the first rows of the language were shuffled. A row behind those that give enough can never be among
    them, so it is let go at once, before it is tokenised.

    Args:
        sink: Takes the rows that are drawn.
        rows: How many rows of a language to draw from; fewer if the stream has fewer.
        seed: Seed of the draw.
    """

    def __init__(self, sink: Measuring, rows: int, seed: int) -> None:
        self._sink = sink
        self._rows = rows
        self._seed = seed
        self._draws: dict[str, _Draw] = {}

    def add(self, language: str, row: Row) -> None:
        """Takes a row into the draw."""
        if language not in self._draws:
            self._draws[language] = _Draw(self._seed, language)
        draw = self._draws[language]
        draw.seen += 1
        key = draw.random.random()
        if draw.given >= self._sink.enough(language) and key > draw.held[-1].key:
            return
        encoded = self._sink.encode(language, row)
        drawn = _Drawn(key, self._sink.gives(encoded), row, encoded)
        insort(draw.held, drawn, key=_KEY)
        draw.given += drawn.gives
        while draw.given - draw.held[-1].gives >= self._sink.enough(language):
            draw.given -= draw.held.pop().gives

    def is_full(self, language: str) -> bool:
        """Whether all rows of a language that can be drawn have been seen."""
        return language in self._draws and self._draws[language].seen >= self._rows

    def pour(self) -> None:
        """Adds the rows that were drawn to the sink, and begins anew."""
        while self._draws:
            language, draw = self._draws.popitem()
            for drawn in draw.held:
                if self._sink.is_full(language):
                    break
                self._sink.add(language, drawn.row, drawn.encoded)
