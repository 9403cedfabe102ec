"""Rows become chunks: text packed to one length, or pairs of source and target."""

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby

import torch

from ..utils import abridged
from .cutting import Cutter, Piece
from .encoding import RowEncoder
from .rows import Row

Packed = dict[str, "array[int]"]  # a list would take five times the memory
Batch = dict[str, torch.Tensor]


def _packed(inputs: Mapping[str, Sequence[int]]) -> Packed:
    return {name: array("q", values) for name, values in inputs.items()}


class _Counted:
    """Counts the rows of each language.

    Attributes:
        rows: Language to the number of rows that were used.
        empty: Language to the number of rows without text.
    """

    def __init__(self, encoder: RowEncoder) -> None:
        self.encoder = encoder
        self.rows: defaultdict[str, int] = defaultdict(int)
        self.empty: defaultdict[str, int] = defaultdict(int)

    @property
    def languages(self) -> list[str]:
        """Languages with a row that was read, in sorted order."""
        return sorted({*self.rows, *self.empty})

    def _count(self, language: str, inputs: Packed) -> None:
        counter = self.rows if inputs else self.empty
        counter[language] += 1


class TextPacker(_Counted):
    """Concatenates the tokens of each language until they fill its chunks.

    While other rows are left, a row gives at most `max_per_row` tokens, so that one long document does not stand for
    a whole language. Of a language that is full nothing but its chunks is held.

    Args:
        encoder: Encodes the rows.
        length: Tokens per chunk.
        chunks: Most chunks of a language.
        max_per_row: Most tokens that a row gives while others are left.
    """

    kind = "text"

    def __init__(self, encoder: RowEncoder, length: int, chunks: Callable[[str], int], max_per_row: int) -> None:
        super().__init__(encoder)
        self.length = length
        self.capacity = chunks
        self.max_per_row = max_per_row
        self._full: dict[str, Batch] = {}
        self._tokens: defaultdict[str, Packed] = defaultdict(dict)
        self._cut: defaultdict[str, list[Row]] = defaultdict(list)
        self._names: frozenset[str] | None = None
        self._cutter = Cutter(encoder, length)

    def enough(self, language: str) -> int:
        """So many tokens fill all chunks of a language."""
        return self.capacity(language) * self.length

    def encode(self, language: str, row: Row) -> Packed:
        """The tokens of a row, one more than it gives if it is cut, and its positions if it has any."""
        return _packed(self.encoder.inputs(row, language, self.max_per_row + 1))

    def gives(self, encoded: Packed) -> int:
        """How many tokens a row gives while others are left."""
        return min(len(encoded.get("input_ids", ())), self.max_per_row)

    def add(self, language: str, row: Row, encoded: Packed | None = None) -> None:
        """Takes a row, of which it may have been told what `encode` returned.

        Raises:
            ValueError: If it has `position_ids` and another row has none, or the reverse.
        """
        inputs = self.encode(language, row) if encoded is None else encoded
        self._count(language, inputs)
        if not inputs or self.is_full(language):
            return
        self._cutter.see(language, row, inputs["input_ids"])
        self._names = self._names or frozenset(inputs)
        if self._names != inputs.keys():
            raise ValueError(
                f"A row of language {language!r} has {'' if 'position_ids' in inputs else 'no '}position_ids, unlike "
                "the rows before it: give them in all rows or in none."
            )
        if len(inputs["input_ids"]) > self.max_per_row:
            self._cut[language].append(row)
        for name, values in inputs.items():
            self._tokens[language].setdefault(name, array("q")).extend(values[: self.max_per_row])
        if self._fills_all(language):
            self._full[language] = self._batch(language, self._tokens.pop(language))
            self._cut.pop(language, None)

    def is_full(self, language: str) -> bool:
        """Whether a language needs no more rows."""
        return language in self._full

    def batches(self, language: str) -> tuple[Batch, ...]:
        """All chunks of a language as one batch; none if its tokens fill no chunk."""
        if language in self._full:
            return (self._full[language],)
        if language not in self._tokens:
            return ()
        batch = self._batch(language, self._filled_up(language))
        return (batch,) if len(batch["input_ids"]) else ()

    def shortage(self, languages: Iterable[str]) -> str:
        """What languages without a chunk have, to follow the words "they have"."""
        counts = [f"{language!r} {len(self._tokens[language].get('input_ids', ()))}" for language in languages]
        found = abridged(counts)
        return f"fewer than the {self.length} of one chunk (tokens: {found}). Lower sequence_length, or add text."

    def _fills_all(self, language: str) -> bool:
        """Whether the tokens of a language fill all chunks; they are cut only if their number alone does not tell."""
        tokens = self._tokens[language]
        count, prefix = len(tokens["input_ids"]), self._cutter.prefix(language)
        if count < self.capacity(language) * (self.length - len(prefix)):
            return False
        return count >= self.enough(language) or len(self._chunks(language, tokens)) >= self.capacity(language)

    def _batch(self, language: str, tokens: Packed) -> Batch:
        chunks = self._chunks(language, tokens)[: self.capacity(language)]
        # What is put in front of a chunk has no position, so no row with positions gets it.
        return {name: torch.tensor([chunk.of(values) for chunk in chunks]) for name, values in tokens.items()}

    def _chunks(self, language: str, tokens: Packed) -> list[Piece]:
        """Where the tokens of a language are cut; what does not fill a chunk is left out."""
        return [piece for piece in self._cutter.pieces(language, tokens["input_ids"]) if piece.size == self.length]

    def _filled_up(self, language: str) -> Packed:
        """The tokens of a language, and as many of those that its long rows have left as it lacks."""
        tokens = {name: values[:] for name, values in self._tokens[language].items()}
        encoder = self.encoder.again()
        for row in self._cut[language]:
            lacking = self.enough(language) - len(tokens["input_ids"])
            if lacking <= 0:
                break
            for name, values in encoder.inputs(row, language, self.max_per_row + lacking).items():
                tokens[name].extend(values[self.max_per_row :])
        return tokens


class PairPacker(_Counted):
    """Keeps pairs of source and target for an encoder-decoder; each pair is a chunk.

    Args:
        encoder: Encodes the rows.
        length: Most tokens per source, and per target.
        chunks: Most pairs of a language.
    """

    kind = "source or target"

    def __init__(self, encoder: RowEncoder, length: int, chunks: Callable[[str], int]) -> None:
        super().__init__(encoder)
        self.length = length
        self.capacity = chunks
        self._pairs: defaultdict[str, list[Packed]] = defaultdict(list)

    def enough(self, language: str) -> int:
        """So many pairs are all of a language."""
        return self.capacity(language)

    def encode(self, language: str, row: Row) -> Packed:
        """The tokens of both sides of a row; nothing if one is missing."""
        return _packed(self.encoder.pair(row, language, self.length))

    def gives(self, encoded: Packed) -> int:
        """1 for a pair, 0 for a row in which a side is missing."""
        return int(bool(encoded))

    def add(self, language: str, row: Row, encoded: Packed | None = None) -> None:
        """Takes a row, of which it may have been told what `encode` returned."""
        pair = self.encode(language, row) if encoded is None else encoded
        self._count(language, pair)
        if pair:
            self._pairs[language].append(pair)

    def is_full(self, language: str) -> bool:
        """Whether a language needs no more rows."""
        return language in self._pairs and len(self._pairs[language]) >= self.enough(language)

    def batches(self, language: str) -> tuple[Batch, ...]:
        """The pairs of a language, one batch for each combination of source and target length.

        Pairs of one shape need no padding; padding would enter the statistics.
        """

        def shape(pair: Packed) -> tuple[int, int]:
            return len(pair["input_ids"]), len(pair["labels"])

        groups = [list(group) for _, group in groupby(sorted(self._pairs[language], key=shape), shape)]
        return tuple(
            {name: torch.tensor([pair[name].tolist() for pair in group]) for name in group[0]} for group in groups
        )

    def shortage(self, languages: Iterable[str]) -> str:
        """What languages without a chunk have, to follow the words "they have"."""
        return (
            f"no row with both a source and a target ({abridged(map(repr, languages))}): check text_column and "
            "target_column, or 'input_ids' and 'labels'."
        )
