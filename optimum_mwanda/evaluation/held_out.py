"""Held-out rows become windows: running text for decoders, pairs of source and target for encoder-decoders."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.cutting import Cutter
from ..data.encoding import RowEncoder
from ..data.excerpt import excerpt
from ..data.rows import Row
from ..data.special_tokens import begins_with, spelled, unknown_id
from ..data.tokenised import IGNORED_LABEL
from .windows import Window


class Batch(NamedTuple):
    """Windows that are evaluated together.

    Attributes:
        inputs: Keyword arguments of the model, each `(windows, tokens)`.
        targets: What the first logits of every window should predict, `(windows, predictions)`; -100 for no target.
        numbers: Numbers of these windows within the language.
    """

    inputs: dict[str, Tensor]
    targets: Tensor
    numbers: Sequence[int]


class HeldOut(ABC):
    """Gathers the rows of a language until it has enough.

    Args:
        encoder: Encodes the rows.
        length: Most tokens per window.
        max_tokens: Most tokens per language.
    """

    def __init__(self, encoder: RowEncoder, length: int, max_tokens: int) -> None:
        self.encoder = encoder
        self.length = length
        self.max_tokens = max_tokens

    @property
    @abstractmethod
    def languages(self) -> list[str]:
        """Languages with a row that was read, in sorted order."""

    @abstractmethod
    def add(self, language: str, row: Row) -> None:
        """Takes a row."""

    @abstractmethod
    def is_full(self, language: str) -> bool:
        """Whether a language needs no more rows."""

    @abstractmethod
    def batches(self, language: str, batch_size: int) -> Iterator[Batch]:
        """Yields all windows of a language, without padding."""

    @abstractmethod
    def sizes(self, language: str, windows: Sequence[Window]) -> list[int] | None:
        """UTF-8 length of the text of each window; None if some text of the language is known only as token ids."""

    @abstractmethod
    def min_targets(self, windows: Sequence[Window]) -> float:
        """How many targets a window needs to be resampled on its own."""

    def _targets(self, ids: Tensor) -> Tensor:
        """The ids, with special tokens marked as ignored if there is a tokenizer to recognise them.

        The token for unknown text is kept: it stands for text, whose bytes are counted.
        """
        tokenizer = self.encoder.tokenizer if self.encoder.has_tokenizer else None
        special = [] if tokenizer is None else [*{*tokenizer.all_special_ids} - {unknown_id(tokenizer)}]
        return ids.masked_fill(torch.isin(ids, torch.tensor(special, dtype=torch.int64)), IGNORED_LABEL)


class HeldOutText(HeldOut):
    """The texts of each language, concatenated and read in windows that overlap by one token.

    With `bos` every window begins as the tokenizer begins a text, and the token that it repeats comes behind that.
    """

    def __init__(self, encoder: RowEncoder, length: int, max_tokens: int) -> None:
        super().__init__(encoder, length, max_tokens)
        self._tokens: dict[str, list[int]] = {}
        self._bytes: dict[str, int] = {}
        self._without_text: set[str] = set()
        self._cutter = Cutter(encoder, length, overlap=1)

    @property
    def languages(self) -> list[str]:
        return sorted(self._tokens)

    def add(self, language: str, row: Row) -> None:
        tokens = self._tokens.setdefault(language, [])
        # One more than there is room for tells whether the row is cut.
        ids = self.encoder.encode(row, language, self.max_tokens - len(tokens) + 1)
        if not ids:
            return
        self._cutter.see(language, row, ids)
        if not self.encoder.has_text(row):
            tokens.extend(ids[: self.max_tokens - len(tokens)])
            self._without_text.add(language)
            return
        if not tokens:
            tokens.extend(self._beginning(language, ids))
        kept = ids[: self.max_tokens - len(tokens)]
        whole = len(kept) == len(ids)
        text = self.encoder.text(row) if whole else self.encoder.beginning(row, kept)
        tokens.extend(kept)
        self._bytes[language] = self._bytes.get(language, 0) + len(text.encode("utf-8"))

    def is_full(self, language: str) -> bool:
        return len(self._tokens.get(language, ())) >= self.max_tokens

    def batches(self, language: str, batch_size: int) -> Iterator[Batch]:
        ids = self._tokens[language]
        pieces = self._cutter.pieces(language, ids)
        # All windows but the last have the same length.
        full = len(pieces) - (bool(pieces) and pieces[-1].size < self.length)
        for start, end in pairwise([*range(0, full, batch_size), full, *([len(pieces)] if full < len(pieces) else [])]):
            part = torch.tensor([piece.of(ids) for piece in pieces[start:end]])
            targets = self._targets(part[:, 1:])
            for row, piece in zip(targets, pieces[start:end], strict=True):
                row[: len(piece.prefix)] = IGNORED_LABEL  # the prefix, and the token that the window before predicted
            yield Batch({"input_ids": part}, targets, range(start, end))

    def sizes(self, language: str, windows: Sequence[Window]) -> list[int] | None:
        """As in the base class: the bytes of a language are split over its windows.

        They are split in proportion to the decoded targets of each window. The decoded lengths themselves would not add
        up: a window may begin within a character, and a tokenizer may drop a space.
        """
        total = 0 if language in self._without_text else self._bytes[language]
        if not total:
            return None
        lengths = [max(self._length(each.targets), 1) for each in windows]
        ends = [round(total * part / sum(lengths)) for part in accumulate(lengths)]
        return [end - start for start, end in pairwise([0, *ends])]

    def min_targets(self, windows: Sequence[Window]) -> float:
        return (self.length - 1) / 2

    def _length(self, targets: list[int]) -> int:
        """UTF-8 length of what tokens decode to; what is unknown is as long as its name."""
        tokenizer = self.encoder.tokenizer
        unknown = self.encoder.unknown([targets]) or 0
        text = str(tokenizer.decode(targets, skip_special_tokens=True)) + unknown * str(tokenizer.unk_token)
        return len(text.encode())

    def _beginning(self, language: str, ids: Sequence[int]) -> Sequence[int]:
        """What the first text of a language needs in front of it, for its first token to be predicted."""
        if prefix := self._cutter.prefix(language):
            return () if begins_with(ids, prefix) else prefix
        tokenizer = self.encoder.tokenizer
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        return () if ids[0] in tokenizer.all_special_ids or start is None else (start,)


class _Pair(NamedTuple):
    """A source, its target, and the UTF-8 length of the target; None if only its tokens are known."""

    input_ids: list[int]
    labels: list[int]
    bytes: int | None


class HeldOutPairs(HeldOut):
    """Pairs of source and target, each a window; only the tokens of targets are counted.

    Args:
        encoder: Encodes the rows.
        length: Most tokens per source, and per target.
        max_tokens: Most tokens of all targets in a language together.
        target_column: Column with the target.
    """

    def __init__(self, encoder: RowEncoder, length: int, max_tokens: int, target_column: str) -> None:
        super().__init__(encoder, length, max_tokens)
        self._target_column = target_column
        self._pairs: dict[str, list[_Pair]] = {}
        self._counts: dict[str, int] = {}

    @property
    def languages(self) -> list[str]:
        return sorted(self._pairs)

    def add(self, language: str, row: Row) -> None:
        pair = self.encoder.pair(row, language, self.length)
        pairs = self._pairs.setdefault(language, [])
        if pair:
            count = self._counts.get(language, 0)
            labels = pair["labels"][: self.max_tokens - count]
            self._counts[language] = count + len(labels)
            pairs.append(_Pair(pair["input_ids"], labels, self._size(row, labels)))

    def is_full(self, language: str) -> bool:
        return self._counts.get(language, 0) >= self.max_tokens

    def batches(self, language: str, batch_size: int) -> Iterator[Batch]:
        pairs = self._pairs[language]

        def shape(number: int) -> tuple[int, int]:
            return len(pairs[number].input_ids), len(pairs[number].labels)

        for _, group in groupby(sorted(range(len(pairs)), key=shape), shape):
            numbers = list(group)
            for start in range(0, len(numbers), batch_size):
                part = numbers[start : start + batch_size]
                labels = torch.tensor([pairs[number].labels for number in part])
                inputs = {"input_ids": torch.tensor([pairs[number].input_ids for number in part]), "labels": labels}
                yield Batch(inputs, self._targets(labels), part)

    def sizes(self, language: str, windows: Sequence[Window]) -> list[int] | None:
        sizes = [pair.bytes for pair in self._pairs[language] if pair.bytes is not None]
        return sizes if len(sizes) == len(windows) and any(sizes) else None

    def min_targets(self, windows: Sequence[Window]) -> float:
        return sum(len(window.targets) for window in windows) / len(windows) / 2

    def _size(self, row: Row, labels: list[int]) -> int | None:
        if row.get("input_ids") is not None and row.get("labels") is not None:
            return None
        tokenizer, text = self.encoder.tokenizer, row[self._target_column]
        start = excerpt(tokenizer, text, len(labels) + 1, "text_target")
        if labels != tokenizer(text_target=start, verbose=False)["input_ids"]:  # it was cut
            text = spelled(tokenizer, labels, text, "text_target")
        return len(text.encode("utf-8"))
