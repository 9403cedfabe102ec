"""How well a model predicts held-out text, per language."""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..calibration.encoding import RowEncoder, resolve_sequence_length
from ..calibration.rows import Row, feed
from ..modeling.blocks import inference_mode, input_device
from ..modeling.interrupts import interruptible
from ..utils import progress_bar, sum_dtype
from .report import PerplexityReport
from .scores import LanguageScore, Windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100  # the id that PyTorch and transformers give to what is no target


def evaluate_languages(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | str | None",
    dataset: Any,
    *,
    languages: Sequence[str] | None = None,
    language_column: str = "language",
    text_column: str = "text",
    sequence_length: int | None = None,
    tokens_per_language: int = 16384,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = True,
) -> PerplexityReport:
    """Measures negative log-likelihood, perplexity and bits per byte of held-out text in every language.

    The texts of a language are concatenated and read in windows that overlap by one token, so that every token but
    the first is predicted exactly once. Special tokens are context, never targets, as far as a tokenizer is there to
    tell them. Nothing is padded. Every window is kept in the scores, which resample them for their standard errors; one
    that predicts less than half of what a full one does, such as the last, is joined to its neighbour for that.

    Args:
        model: A causal language model; it is not changed.
        tokenizer: Its tokenizer, or the name or path of one. None: the one saved beside the model; rows with
            `input_ids` need none, and then bits per byte are unknown.
        dataset: `datasets.Dataset` or `IterableDataset`, a dict of language to texts, or a list of rows.
        languages: Languages to evaluate; None for all.
        language_column: Column that names the language.
        text_column: Column with the text.
        sequence_length: Tokens per window. None: 512, or the model's positions where those are fewer.
        tokens_per_language: Most tokens to evaluate per language; the last text is cut to fit.
        batch_size: Windows per forward pass.
        seed: Seed of the choice of rows, where there are more than needed.
        progress: Whether to show a progress bar.

    Returns:
        The scores, languages in sorted order.

    Raises:
        TypeError: If the dataset or its columns have a type that cannot be read.
        FloatingPointError: If the model gives NaN or infinite losses; the message names the language.
        ValueError: If columns or languages are missing, a language has no token to predict, or ids do not fit.
    """
    length = resolve_sequence_length(sequence_length, model)
    if length < 2 or tokens_per_language < 2 or batch_size < 1:
        raise ValueError(
            f"sequence_length={length} and tokens_per_language={tokens_per_language} must be at least 2, as the first "
            f"token of a window is not predicted, and batch_size={batch_size} at least 1."
        )
    texts = _HeldOut(RowEncoder(tokenizer, model, text_column), tokens_per_language)
    feed(
        dataset,
        texts,
        language_column=language_column,
        text_column=text_column,
        languages=(languages,) if isinstance(languages, str) else languages,
        seed=seed,
    )
    special = texts.special_tokens()
    tokens = {language: torch.tensor(ids, dtype=torch.int64) for language, ids in sorted(texts.tokens.items())}
    silent = [language for language, ids in tokens.items() if torch.isin(ids[1:], special).all()]
    if silent or not tokens:
        raise ValueError(f"There is no text to evaluate{' in ' + ', '.join(map(repr, silent)) if silent else ''}.")
    jobs = [(language, batch) for language, ids in tokens.items() for batch in _batches(ids, length, batch_size)]
    measured: dict[str, list[_Window]] = {language: [] for language in tokens}
    with inference_mode(model):
        for language, batch in progress_bar(jobs, total=len(jobs), description="Evaluating", show=progress):
            targets = batch[:, 1:].masked_fill(torch.isin(batch[:, 1:], special), IGNORED)
            for loss, wanted in zip(_negative_log_likelihoods(model, batch, targets), targets, strict=True):
                if not math.isfinite(loss):
                    raise FloatingPointError(
                        f"The loss of language {language!r} is {loss}: the model gives NaN or infinity."
                    )
                measured[language].append(_Window(loss, wanted[wanted != IGNORED].tolist()))
    scores = {language: _score(language, each, texts, (length - 1) / 2) for language, each in measured.items()}
    return PerplexityReport(scores, getattr(model, "name_or_path", ""), length)


class _Window(NamedTuple):
    """The loss over a window, in nats, and the tokens that it is over."""

    nll: float
    targets: list[int]


class _HeldOut:
    """Gathers token ids and the length of their text until a language has enough."""

    def __init__(self, encoder: RowEncoder, most: int) -> None:
        self.encoder = encoder
        self.most = most
        self.tokens: dict[str, list[int]] = {}
        self.bytes: dict[str, int] = {}
        self.without_text: set[str] = set()

    def add(self, language: str, row: Row) -> None:
        ids = self.encoder.encode(row, language)
        tokens = self.tokens.setdefault(language, [])
        if not ids:
            return
        if not self.encoder.has_text(row):
            tokens.extend(ids[: self.most - len(tokens)])
            self.without_text.add(language)
            return
        tokenizer = self.encoder.tokenizer
        if not tokens and ids[0] not in tokenizer.all_special_ids:
            start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
            if start is not None:
                tokens.append(start)
        kept = ids[: self.most - len(tokens)]
        whole = len(kept) == len(ids)
        text = self.encoder.text(row) if whole else str(tokenizer.decode(kept, skip_special_tokens=True))
        tokens.extend(kept)
        self.bytes[language] = self.bytes.get(language, 0) + len(text.encode("utf-8"))

    def is_full(self, language: str) -> bool:
        return len(self.tokens.get(language, ())) >= self.most

    def bytes_of(self, language: str) -> int | None:
        """Length of a language's text; None if some of it, or all, is known as token ids only."""
        return None if language in self.without_text else self.bytes[language] or None

    def share_bytes(self, language: str, windows: Sequence[_Window]) -> list[int] | None:
        """Splits the bytes of a language over its windows; None if there are none.

        They are split in proportion to what the targets of a window decode to. That alone would not sum up: a window
        may begin within a character, and a tokenizer may drop a space.
        """
        total = self.bytes_of(language)
        if total is None:
            return None
        decode = self.encoder.tokenizer.decode
        lengths = [max(len(str(decode(each.targets, skip_special_tokens=True)).encode()), 1) for each in windows]
        ends = [round(total * part / sum(lengths)) for part in accumulate(lengths)]
        return [end - start for start, end in pairwise([0, *ends])]

    def special_tokens(self) -> Tensor:
        """Ids that are never targets."""
        known = self.bytes or self.encoder.has_tokenizer
        return torch.tensor(self.encoder.tokenizer.all_special_ids if known else [], dtype=torch.int64)


def _batches(ids: Tensor, length: int, batch_size: int) -> list[Tensor]:
    """Windows of `length` tokens that overlap by one, and the shorter rest by itself."""
    full = torch.split(ids.unfold(0, length, length - 1), batch_size) if len(ids) >= length else ()
    rest = ids[sum(map(len, full)) * (length - 1) :]
    return [*full, rest[None]] if len(rest) > 1 else list(full)


def _negative_log_likelihoods(model: "PreTrainedModel", batch: Tensor, targets: Tensor) -> list[float]:
    """Sum over the targets of each window of a batch, in nats."""
    with interruptible():
        logits = model(input_ids=batch.to(input_device(model)), use_cache=False).logits
    sums = [
        # One window at a time: in float32 the logits of a batch can be larger than the model.
        torch.nn.functional.cross_entropy(row[:-1].float(), wanted, reduction="none", ignore_index=IGNORED).sum(
            dtype=sum_dtype(logits.device)
        )
        for row, wanted in zip(logits, targets.to(logits.device), strict=True)
    ]
    losses: list[float] = torch.stack(sums).tolist()
    return losses


def _score(language: str, measured: Sequence[_Window], texts: _HeldOut, least: float) -> LanguageScore:
    """The score of a language from its windows, of which those with fewer than `least` targets are joined to others."""
    nll = [window.nll for window in measured]
    counts = [len(window.targets) for window in measured]
    bytes = texts.share_bytes(language, measured)
    parts = _join_small(counts, [1] * len(counts) if bytes is None else bytes, least)
    windows = Windows(
        tuple(math.fsum(nll[part]) for part in parts),
        tuple(sum(counts[part]) for part in parts),
        None if bytes is None else tuple(sum(bytes[part]) for part in parts),
    )
    return LanguageScore(language, sum(counts), math.fsum(nll) / sum(counts), texts.bytes_of(language), windows)


def _join_small(counts: Sequence[int], bytes: Sequence[int], least: float) -> list[slice]:
    """Groups consecutive windows so that each group has `least` targets and a byte, unless all together have not.

    A figure per token or byte that is resampled from windows of no size would not be one.
    """

    def is_small(part: slice) -> bool:
        return sum(counts[part]) < least or not any(bytes[part])

    parts: list[slice] = []
    for index in range(len(counts)):
        if parts and is_small(parts[-1]):
            parts[-1] = slice(parts[-1].start, index + 1)
        else:
            parts.append(slice(index, index + 1))
    if len(parts) > 1 and is_small(parts[-1]):
        parts[-2:] = [slice(parts[-2].start, len(counts))]
    return parts
