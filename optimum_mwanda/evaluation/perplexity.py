"""How well a model predicts held-out text, per language."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..calibration.encoding import RowEncoder, resolve_sequence_length
from ..calibration.rows import Row, feed
from ..modeling.blocks import inference_mode, input_device
from ..modeling.interrupts import interruptible
from ..utils import progress_bar
from .report import LanguageScore, PerplexityReport

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
    tell them. Nothing is padded.

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
        ValueError: If columns or languages are missing, a language has fewer than two tokens, or ids do not fit.
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
    short = [language for language, ids in texts.tokens.items() if len(ids) < 2]
    if short or not texts.tokens:
        raise ValueError(
            f"There is no text to evaluate{' in ' + ', '.join(map(repr, sorted(short))) if short else ''}."
        )
    jobs = [
        (language, batch)
        for language, ids in sorted(texts.tokens.items())
        for batch in _batches(torch.tensor(ids), length, batch_size)
    ]
    special = texts.special_tokens()
    totals = {language: [0.0, 0] for language, _ in jobs}
    with inference_mode(model):
        for language, batch in progress_bar(jobs, total=len(jobs), description="Evaluating", show=progress):
            losses, count = _negative_log_likelihood(model, batch, special)
            totals[language][0] += losses
            totals[language][1] += count
    for language, (losses, _) in totals.items():
        if not math.isfinite(losses):
            raise FloatingPointError(f"The loss of language {language!r} is {losses}: the model gives NaN or infinity.")
    scores = {
        language: LanguageScore(language, int(count), losses / max(count, 1), texts.bytes.get(language))
        for language, (losses, count) in totals.items()
    }
    return PerplexityReport(scores, getattr(model, "name_or_path", ""), length)


class _HeldOut:
    """Gathers token ids and the length of their text until a language has enough."""

    def __init__(self, encoder: RowEncoder, most: int) -> None:
        self.encoder = encoder
        self.most = most
        self.tokens: dict[str, list[int]] = {}
        self.bytes: dict[str, int] = {}

    def add(self, language: str, row: Row) -> None:
        ids = self.encoder.encode(row, language)
        tokens = self.tokens.setdefault(language, [])
        if not self.encoder.has_text(row):
            tokens.extend(ids[: self.most - len(tokens)])
            return
        if not ids:
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

    def special_tokens(self) -> Tensor:
        """Ids that are never targets."""
        known = self.bytes or self.encoder.has_tokenizer
        return torch.tensor(self.encoder.tokenizer.all_special_ids if known else [], dtype=torch.int64)


def _batches(ids: Tensor, length: int, batch_size: int) -> list[Tensor]:
    """Windows of `length` tokens that overlap by one, and the shorter rest by itself."""
    full = torch.split(ids.unfold(0, length, length - 1), batch_size) if len(ids) >= length else ()
    rest = ids[sum(map(len, full)) * (length - 1) :]
    return [*full, rest[None]] if len(rest) > 1 else list(full)


def _negative_log_likelihood(model: "PreTrainedModel", batch: Tensor, special: Tensor) -> tuple[float, int]:
    """Sum over the targets of a batch, in nats, and their number."""
    with interruptible():
        logits = model(input_ids=batch.to(input_device(model)), use_cache=False).logits
    targets = batch[:, 1:].clone()
    targets[torch.isin(targets, special)] = -100
    total = 0.0
    for row, wanted in zip(logits, targets.to(logits.device), strict=True):
        losses = torch.nn.functional.cross_entropy(row[:-1].float(), wanted, reduction="none")
        total += losses.double().sum().item()
    return total, int((targets != -100).sum())
