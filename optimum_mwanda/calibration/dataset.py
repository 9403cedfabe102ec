"""Calibration data: rows with a language become fixed-length token chunks per language."""

import dataclasses
import hashlib
import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from datasets import IterableDataset

from ..configuration import MWandaConfig
from ..utils import markdown_table
from .encoding import RowEncoder, resolve_sequence_length
from .rows import Row, feed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LanguageCoverage:
    """What the calibration data hold of one language.

    Attributes:
        language: Code, as the dataset gives it.
        rows: Rows that were read, empty ones left out.
        tokens: Tokens that enter the statistics.
        chunks: Chunks of `sequence_length` tokens.
        empty: Rows that were read and found null or empty.
    """

    language: str
    rows: int
    tokens: int
    chunks: int
    empty: int = 0


def coverage_table(coverage: Iterable[LanguageCoverage]) -> str:
    """The coverage as a Markdown table."""
    return markdown_table(
        ["language", "rows", "tokens", "chunks", "empty rows"],
        [[c.language, c.rows, c.tokens, c.chunks, c.empty] for c in coverage],
    )


@dataclasses.dataclass(frozen=True)
class CalibrationChunks:
    """Packed token ids.

    Attributes:
        chunks: Language to token ids of shape `(chunks, sequence_length)`, languages in sorted order.
        coverage: One entry per language that was read, also those without a single chunk.
    """

    chunks: dict[str, torch.Tensor]
    coverage: tuple[LanguageCoverage, ...]

    @property
    def fingerprints(self) -> dict[str, str]:
        """Language to the SHA-256 of its token ids."""
        return {
            language: hashlib.sha256(f"{tuple(ids.shape)}\0".encode() + ids.numpy().astype("<i8").tobytes()).hexdigest()
            for language, ids in self.chunks.items()
        }

    @property
    def tokens(self) -> dict[str, int]:
        return {language: ids.numel() for language, ids in self.chunks.items()}

    def batches(self, batch_size: int) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """Yields `(language, token ids of shape (≤ batch_size, sequence_length))`; no batch mixes languages."""
        for language, ids in self.chunks.items():
            for batch in torch.split(ids, batch_size):
                yield language, {"input_ids": batch}

    def number_of_batches(self, batch_size: int) -> int:
        """How many batches `batches` yields."""
        return sum(-(-len(ids) // batch_size) for ids in self.chunks.values())


class _Packer:
    """Concatenates the token ids of each language until there are enough of them.

    No row gives more than `most_per_row` tokens while others are left, so that one long document does not stand for a
    language.
    """

    def __init__(self, encoder: RowEncoder, capacity: int, most_per_row: int) -> None:
        self.encoder = encoder
        self.capacity = capacity
        self.most_per_row = most_per_row
        self.tokens: dict[str, list[int]] = {}
        self.leftover: dict[str, list[int]] = {}
        self.rows: dict[str, int] = {}
        self.empty: dict[str, int] = {}

    def add(self, language: str, row: Row) -> None:
        ids = self.encoder.encode(row, language)
        self.tokens.setdefault(language, []).extend(ids[: self.most_per_row])
        self.leftover.setdefault(language, []).extend(ids[self.most_per_row :])
        counter = self.rows if ids else self.empty
        counter[language] = counter.get(language, 0) + 1

    def is_full(self, language: str) -> bool:
        return len(self.tokens.get(language, ())) >= self.capacity

    def finish(self) -> dict[str, list[int]]:
        """Token ids per language, at most `capacity`, languages in sorted order."""
        return {
            language: (self.tokens[language] + self.leftover[language])[: self.capacity]
            for language in sorted(self.tokens)
        }


def build_chunks(
    dataset: Any,
    config: MWandaConfig,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | str | None" = None,
) -> CalibrationChunks:
    """Packs a multilingual dataset into chunks of one length, each in one language, without padding.

    The texts of a language are tokenised as the tokenizer does by default, special tokens included, and concatenated;
    tokens beyond `samples_per_language` chunks, and an incomplete last chunk, are left out. A row gives at most one
    chunk while the language has others to give, except in a stream, which is read no further than it must be.

    Args:
        dataset: `datasets.Dataset`, `datasets.IterableDataset`, a dict of language to texts, or a list of rows; the
            rows hold a text or `input_ids`.
        config: Columns, languages, samples per language, sequence length and seed.
        model: Model to calibrate.
        tokenizer: Tokenizer, its name or path, or None for the model's own. Tokenised rows need none.

    Raises:
        TypeError: If the dataset or its columns have a type that cannot be read.
        ValueError: If a column or a language is missing, no language fills a chunk, a language that was asked for does
            not, or token ids or the sequence length do not fit the model.
    """
    length = resolve_sequence_length(config.sequence_length, model)
    capacity = config.samples_per_language * length
    streaming = isinstance(dataset, IterableDataset)
    packer = _Packer(RowEncoder(tokenizer, model, config.text_column), capacity, capacity if streaming else length)
    feed(
        dataset,
        packer,
        language_column=config.language_column,
        text_column=config.text_column,
        languages=config.languages,
        seed=config.seed,
    )
    tokens = packer.finish()
    chunks = {
        language: torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
        for language, ids in tokens.items()
        if len(ids) >= length
    }
    coverage = tuple(
        LanguageCoverage(
            language=language,
            rows=packer.rows.get(language, 0),
            tokens=chunks[language].numel() if language in chunks else 0,
            chunks=len(chunks.get(language, ())),
            empty=packer.empty.get(language, 0),
        )
        for language in tokens
    )
    _check_coverage(chunks, tokens, length, config)
    if empty := sum(packer.empty.values()):
        logger.warning("%d rows with a null or empty text were skipped.", empty)
    return CalibrationChunks(chunks, coverage)


def _check_coverage(
    chunks: dict[str, torch.Tensor], tokens: dict[str, list[int]], length: int, config: MWandaConfig
) -> None:
    short = {language: len(ids) for language, ids in tokens.items() if language not in chunks}
    counts = ", ".join(f"{language!r} {count}" for language, count in sorted(short.items()))
    advice = f"fewer than the {length} of one chunk (tokens: {counts}). Lower sequence_length, or add text."
    if not chunks:
        raise ValueError(f"No language has enough tokens: {'all have ' + advice if short else 'the dataset is empty.'}")
    if short and config.languages is not None:
        raise ValueError(f"Languages that were asked for have {advice}")
    if short:
        logger.warning("Languages are left out of calibration: they have %s", advice)
