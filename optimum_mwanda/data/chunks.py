"""Calibration data: rows with a language become token chunks per language, ready for the model."""

import dataclasses
import hashlib
import inspect
import logging
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ..configuration import MWandaConfig
from ..modeling.interrupts import interruptible
from ..modeling.positions import resolve_sequence_length
from ..utils import abridged
from .ahead import ahead
from .encoding import RowEncoder
from .language_coverage import LanguageCoverage
from .packing import Batch, PairPacker, TextPacker
from .reservoir import Reservoir
from .rows import Feeding, is_read_in_any_thread, is_read_in_order
from .special_tokens import warn_of_unknown

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

TOKENS = ("input_ids", "labels")
"""Inputs whose entries are tokens that pass through the model."""


@dataclasses.dataclass(frozen=True)
class CalibrationChunks:
    """Token chunks without padding.

    Attributes:
        chunks: Language, in sorted order, to its chunks as keyword arguments of the model. Each dict holds chunks of
            one shape: `input_ids` `(chunks, tokens)` and, if the rows have them, `position_ids` of the same shape;
            for an encoder-decoder, `input_ids` `(chunks, source tokens)` and `labels` `(chunks, target tokens)`.
        coverage: One entry per language that was read, even without a single chunk.
        unknown_id: The token that stands for text which the tokenizer does not know, if there is one.
    """

    chunks: dict[str, tuple[Batch, ...]]
    coverage: tuple[LanguageCoverage, ...]
    unknown_id: int | None = None

    @property
    def languages(self) -> list[str]:
        """Languages, in sorted order."""
        return [*self.chunks]

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens per language, those of sources and targets added up."""
        return {language: _count_tokens(parts) for language, parts in self.chunks.items()}

    @property
    def fingerprints(self) -> dict[str, str]:
        """Language to the SHA-256 of everything that the model reads in it."""
        return {language: _digest(parts) for language, parts in self.chunks.items()}

    def whole(self) -> "CalibrationChunks":
        """All of it, as of a `CalibrationText`."""
        return self

    def batches(self, batch_size: int) -> Generator[tuple[str, Batch], None, None]:
        """Yields `(language, keyword arguments of the model)` with at most `batch_size` chunks of one language."""
        for language, parts in self.chunks.items():
            for batch in _split(parts, batch_size):
                yield language, batch

    def number_of_batches(self, batch_size: int) -> int:
        """How many batches `batches` yields."""
        return sum(-(-_count_chunks([part]) // batch_size) for parts in self.chunks.values() for part in parts)

    def part(self, language: str, start: int, stop: int, batch_size: int) -> Iterator[Batch]:
        """Yields what `batches` does, of the chunks of one language from `start` to before `stop`."""
        return _split(cut(self.chunks[language], start, stop), batch_size)

    def first(self, counts: Mapping[str, int]) -> "CalibrationChunks":
        """So many chunks of each language, and their coverage; rows are those that were read for all of them."""
        chunks = {language: cut(parts, 0, counts[language]) for language, parts in self.chunks.items()}
        coverage = [
            self._counted(entry, chunks[entry.language]) if entry.language in chunks else entry
            for entry in self.coverage
        ]
        return dataclasses.replace(self, chunks=chunks, coverage=tuple(coverage))

    def _counted(self, entry: LanguageCoverage, parts: Sequence[Batch]) -> LanguageCoverage:
        unknown = entry.unknown
        if unknown is not None and self.unknown_id is not None:
            unknown = sum(
                int((part[name] == self.unknown_id).sum()) for part in parts for name in TOKENS if name in part
            )
        return dataclasses.replace(entry, tokens=_count_tokens(parts), chunks=_count_chunks(parts), unknown=unknown)


def cut(parts: Iterable[Batch], start: int, stop: int) -> tuple[Batch, ...]:
    """Chunks of a language by their numbers, which may lie outside of it."""
    found = []
    for part in parts:
        count = len(part["input_ids"])
        first, last = max(start, 0), min(stop, count)
        if first < last:
            found.append({name: values[first:last] for name, values in part.items()})
        start, stop = start - count, stop - count
    return tuple(found)


def _split(parts: Iterable[Batch], batch_size: int) -> Iterator[Batch]:
    """Yields at most `batch_size` chunks of one shape at a time."""
    for part in parts:
        names, splits = part.keys(), (torch.split(values, batch_size) for values in part.values())
        for tensors in zip(*splits, strict=True):
            yield dict(zip(names, tensors, strict=True))


def _count_tokens(parts: Iterable[Batch]) -> int:
    return sum(part[name].numel() for part in parts for name in TOKENS if name in part)


def _count_chunks(parts: Iterable[Batch]) -> int:
    return sum(len(part["input_ids"]) for part in parts)


def _digest(parts: Iterable[Batch]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for name, values in part.items():
            # Token ids have no name here, as in the days before there were other inputs.
            digest.update(f"{'' if name == 'input_ids' else name}{tuple(values.shape)}\0".encode())
            digest.update(values.numpy().astype("<i8").tobytes())
    return digest.hexdigest()


class CalibrationText:
    """A multilingual dataset that becomes `CalibrationChunks`: all at once, or while a model runs what has come.

    The texts of a language are tokenised with the tokenizer's defaults, special tokens included, and concatenated;
    tokens beyond `samples_per_language` chunks and an incomplete last chunk are left out. A row gives at most one
    chunk as long as the language has other rows, except in a stream, which is read no further than needed; with
    `reservoir`, the rows of a stream are drawn from the first ones of each language. Chunks for a decoder begin with
    what the tokenizer writes before a text, unless `bos` says otherwise.

    For an encoder-decoder every row is its own chunk: a source and a target of at most `sequence_length` tokens.

    Args:
        dataset: `datasets.Dataset`, `datasets.IterableDataset`, a dict of language to texts, or a list of rows; the
            rows hold a text, a conversation or `input_ids`, and for an encoder-decoder also a target or `labels`.
        config: Columns, languages, samples per language, sequence length, `bos`, reservoir and seed.
        model: Model to calibrate.
        tokenizer: Tokenizer, its name or path, or None for the model's own. Tokenised rows need none.

    Raises:
        TypeError: If the dataset or its columns have a type that cannot be read; like what follows, now or when the
            rows are read.
        ValueError: If a column or a language is missing, no language or not every requested one fills a chunk, or
            token ids, positions or the sequence length do not fit the model.
    """

    def __init__(
        self,
        dataset: Any,
        config: MWandaConfig,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase | str | None" = None,
    ) -> None:
        length = resolve_sequence_length(config.sequence_length, model)
        samples = partial(samples_of, config)
        columns = {"text_column": config.text_column}
        packer: TextPacker | PairPacker
        if model.config.is_encoder_decoder:
            columns["target_column"] = config.target_column
            packer = PairPacker(RowEncoder(tokenizer, model, **columns), length, samples)
        else:
            # Of a stream read in order nobody knows whether another row comes.
            is_in_order = config.reservoir is None and is_read_in_order(dataset)
            most = max(map(samples, [*_named(config), "others"]))
            max_per_row = length * most if is_in_order else length
            encoder = RowEncoder(tokenizer, model, **columns, bos=config.bos)
            packer = TextPacker(encoder, length, samples, max_per_row)
        feeding = Feeding(
            dataset,
            packer,
            language_column=config.language_column,
            languages=config.languages,
            seed=config.seed,
            pool=None if config.reservoir is None else Reservoir(packer, config.reservoir, config.seed),
            **columns,
        )
        self._known, self._in_thread = feeding.languages, is_read_in_any_thread(dataset)
        if self._known is not None:
            _check_named(config, self._known)
        self._config, self._model = config, model
        self._reading = self._read(feeding, packer)
        self._whole: CalibrationChunks | None = None

    @property
    def languages(self) -> list[str]:
        """Languages, in sorted order; some may turn out to lack text. If all come from one stream, it is read first."""
        return self.whole().languages if self._known is None or self._whole is not None else sorted(self._known)

    @property
    def coverage(self) -> tuple[LanguageCoverage, ...]:
        """What there is of each language, once all is read."""
        return () if self._whole is None else self._whole.coverage

    def whole(self) -> CalibrationChunks:
        """All of it, read now if it has not been.

        Raises:
            RuntimeError: If reading it has failed before.
        """
        with interruptible():
            for _ in self._reading:
                pass
        if self._whole is None:
            raise RuntimeError("Reading this text has failed before, and it cannot be read again.")
        return self._whole

    def batches(self, batch_size: int) -> Generator[tuple[str, Batch], None, None]:
        """Yields what `CalibrationChunks.batches` does, in the order in which languages are read.

        A thread reads what comes after the first one meanwhile, if it can.
        """
        if self._known is None or self._whole is not None or not self._in_thread:
            yield from self.whole().batches(batch_size)
            return
        yield from ahead(self._coming(batch_size))

    def number_of_batches(self, batch_size: int) -> int | None:
        """How many batches `batches` yields; None as long as that is not known."""
        return None if self._whole is None else self._whole.number_of_batches(batch_size)

    def _coming(self, batch_size: int) -> Generator[tuple[str, Batch] | None, None, None]:
        for found in self._reading:
            if found is None:
                yield None
                continue
            language, parts = found
            for batch in _split(parts, batch_size):
                yield language, batch

    def _read(
        self, feeding: Iterable[str | None], packer: TextPacker | PairPacker
    ) -> Generator[tuple[str, tuple[Batch, ...]] | None, None, None]:
        """Yields None after a row, and a language with its chunks when none of its rows is missing."""
        found: dict[str, tuple[Batch, ...]] = {}
        for language in feeding:
            if language is None:
                yield None
            else:
                found[language] = packer.batches(language)
                _check_accepted(self._model, found[language])
                yield language, found[language]
        self._whole = self._completed(packer, found)

    def _completed(self, packer: TextPacker | PairPacker, found: Mapping[str, tuple[Batch, ...]]) -> CalibrationChunks:
        """All chunks, once all rows are read; those of some languages were found before."""
        packer.encoder.check_padding()
        _check_named(self._config, packer.languages)
        batches = {each: found[each] if each in found else packer.batches(each) for each in packer.languages}
        coverage = tuple(
            LanguageCoverage(
                language=language,
                rows=packer.rows[language],
                tokens=_count_tokens(parts),
                chunks=_count_chunks(parts),
                empty=packer.empty[language],
                unknown=packer.encoder.unknown(part[name] for part in parts for name in TOKENS if name in part),
            )
            for language, parts in batches.items()
        )
        chunks = {language: parts for language, parts in batches.items() if parts}
        _check_coverage(packer, chunks, asked_for=self._config.languages is not None)
        _check_accepted(self._model, next(iter(chunks.values())))
        warn_of_unknown(((entry.language, entry.unknown_share) for entry in coverage), "calibrated on")
        if empty := sum(packer.empty.values()):
            logger.warning("%d rows with a null or empty %s were skipped.", empty, packer.kind)
        return CalibrationChunks(chunks, coverage, packer.encoder.unknown_id)


def build_chunks(
    dataset: Any,
    config: MWandaConfig,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | str | None" = None,
) -> CalibrationChunks:
    """Cuts a multilingual dataset into chunks, each in one language, without padding: a `CalibrationText`, read now."""
    return CalibrationText(dataset, config, model, tokenizer).whole()


def samples_of(config: MWandaConfig, language: str) -> int:
    """How many chunks a language may have."""
    given: Any = config.samples_per_language
    found = given.get(language, MWandaConfig.samples_per_language) if isinstance(given, Mapping) else given
    return int(found)


def _named(config: MWandaConfig) -> Iterable[str]:
    """The languages with a number of samples of their own."""
    given = config.samples_per_language
    return given if isinstance(given, Mapping) else ()


def _check_named(config: MWandaConfig, languages: Sequence[str]) -> None:
    if unknown := sorted({*_named(config)} - {*languages}):
        raise ValueError(
            f"samples_per_language names {', '.join(map(repr, unknown))}, but calibration has: "
            f"{abridged(sorted(languages), 20) or 'none'}."
        )


def _check_coverage(packer: TextPacker | PairPacker, chunks: dict[str, tuple[Batch, ...]], asked_for: bool) -> None:
    short = [language for language in packer.languages if language not in chunks]
    if not chunks:
        reason = f"all have {packer.shortage(short)}" if short else "the dataset is empty."
        raise ValueError(f"No language has enough tokens: {reason}")
    if short and asked_for:
        raise ValueError(f"Languages that were asked for have {packer.shortage(short)}")
    if short:
        logger.warning("Some languages are left out of calibration: they have %s", packer.shortage(short))


def _check_accepted(model: "PreTrainedModel", parts: Sequence[Batch]) -> None:
    """Checks that the model takes the inputs that only some models take."""
    parameters = inspect.signature(model.forward).parameters
    for name in parts[0] if parts else ():
        if name == "labels" and name not in parameters:
            raise ValueError(
                f"{type(model).__name__} takes no labels, but an encoder-decoder makes its decoder's inputs from them: "
                "load the model with a language-model head, for example with AutoModelForSeq2SeqLM."
            )
        if name == "position_ids" and name not in parameters:
            raise ValueError(f"{type(model).__name__} takes no position_ids: leave that column out of the dataset.")
