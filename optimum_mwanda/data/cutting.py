"""Where a run of tokens is cut into pieces that each begin as the model expects a text to begin."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .encoding import RowEncoder
from .rows import Row
from .special_tokens import begins_with


class Piece(NamedTuple):
    """A part of a run of tokens.

    Attributes:
        start: First token.
        end: Behind the last token.
        prefix: What goes in front of them; empty if they begin with it themselves.
    """

    start: int
    end: int
    prefix: Sequence[int] = ()

    @property
    def size(self) -> int:
        """Its number of tokens."""
        return len(self.prefix) + self.end - self.start

    def of(self, ids: Sequence[int]) -> list[int]:
        """Its token ids, given those of the run."""
        return [*self.prefix, *ids[self.start : self.end]]


def cut(ids: Sequence[int], length: int, prefix: Sequence[int] = (), overlap: int = 0) -> Iterator[Piece]:
    """Cuts a run of tokens into pieces of `length` tokens, their prefix included; the last may be shorter.

    Args:
        ids: Token ids of the run.
        length: Tokens of a piece; more than the prefix and the overlap together.
        prefix: What every piece begins with.
        overlap: How many tokens a piece repeats of the one before. The last one has more than these.
    """
    start = 0
    while start < len(ids) - overlap:
        added = () if begins_with(ids[start : start + len(prefix)], prefix) else prefix
        end = min(start + length - len(added), len(ids))
        yield Piece(start, end, added)
        start = end - overlap


class Cutter:
    """Cuts the tokens of each language, and knows which of them are to be left as they are.

    These are languages with a tokenised row that does not begin as the tokenizer begins a text, or that brings its
    positions.

    Args:
        encoder: Has encoded the rows.
        length: Tokens of a piece.
        overlap: As in `cut`.
    """

    def __init__(self, encoder: RowEncoder, length: int, overlap: int = 0) -> None:
        self._encoder = encoder
        self._length = length
        self._overlap = overlap
        self._as_they_are: set[str] = set()

    def see(self, language: str, row: Row, ids: Sequence[int]) -> None:
        """Takes notice of a row and of its token ids."""
        if self._encoder.has_text(row):
            return
        has_beginning = self._encoder.has_tokenizer and begins_with(ids, self._encoder.prefix)
        if not has_beginning or row.get("position_ids") is not None:
            self._as_they_are.add(language)

    def prefix(self, language: str) -> Sequence[int]:
        """What every piece of a language begins with.

        Raises:
            ValueError: If nothing fits behind it.
        """
        if language in self._as_they_are:
            return ()
        prefix = self._encoder.prefix
        least = len(prefix) + self._overlap + 1
        if self._length < least:
            raise ValueError(
                f"sequence_length={self._length} leaves no room for text behind what the tokenizer begins one with "
                f"(token ids {', '.join(map(str, prefix))}): give at least {least}, or bos='none'."
            )
        return prefix

    def pieces(self, language: str, ids: Sequence[int]) -> list[Piece]:
        """The pieces of a run of tokens; none of no tokens."""
        return list(cut(ids, self._length, self.prefix(language), self._overlap)) if ids else []
