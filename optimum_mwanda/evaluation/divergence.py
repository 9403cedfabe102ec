"""How far a pruned model's predictions are from those of its dense original, on a little text."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data.chunks import CalibrationChunks
from ..modeling.blocks import run_model
from ..modeling.interrupts import interruptible

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Rows = list[tuple[str, Mapping[str, Tensor]]]
"""The language of each row, and what the model is called with, of shape `(1, tokens)`."""

_LIKELY = 256
"""Tokens of the vocabulary that are told apart at each position; all others count as one."""


class Divergence:
    """Measures `KL(dense ‖ pruned)` per language, in nats per token.

    The dense predictions are kept as the logarithms of the 256 largest probabilities at each position and of what is
    left of 1, so a vocabulary of 262,144 tokens takes no more memory than one of 30,000.

    Args:
        model: The dense model, in inference mode; it may be changed afterwards.
        chunks: Text; of every language the first chunks are used.
        count: How many, at most; an even number. The first half of them and the second can be measured apart.
        tokens: How many tokens of each, at most.
        batch_size: Chunks per forward pass.
    """

    def __init__(
        self, model: "PreTrainedModel", chunks: CalibrationChunks, count: int, tokens: int, batch_size: int
    ) -> None:
        self._model, self._batch_size = model, batch_size
        self._halves: list[Rows] = [[], []]
        for language, parts in chunks.chunks.items():
            rows = [
                {name: values[row : row + 1, :tokens] for name, values in part.items()}
                for part in parts
                for row in range(len(part["input_ids"]))
            ][:count]
            for number, row in enumerate(rows):
                self._halves[number % 2].append((language, row))
        self._halves = [half for half in self._halves if half]
        self._dense = [[self._likely(logits) for logits in self._logits(half)] for half in self._halves]

    @property
    def parts(self) -> int:
        """How many parts of the text can be measured apart: 2, or 1 if every language has a single chunk."""
        return len(self._halves)

    @property
    def tokens(self) -> int:
        """Tokens per measurement of all parts."""
        return sum(row["input_ids"].numel() for half in self._halves for _, row in half)

    def measure(self, part: int) -> dict[str, float]:
        """Language to the mean divergence of the model as it is now, on one part of the text.

        Raises:
            FloatingPointError: If the model gives NaN or infinite predictions.
        """
        found: dict[str, list[float]] = {}
        for (language, _), dense, logits in zip(
            self._halves[part], self._dense[part], self._logits(self._halves[part]), strict=True
        ):
            found.setdefault(language, []).append(_divergence(dense, logits))
        means = {language: sum(values) / len(values) for language, values in found.items()}
        for language, mean in means.items():
            if not mean < float("inf"):
                raise FloatingPointError(f"The divergence in language {language!r} is {mean}: lower the sparsity.")
        return means

    def measure_all(self) -> dict[str, float]:
        """Language to the mean divergence over the parts that have it.

        Raises:
            FloatingPointError: As `measure`.
        """
        return mean_over_parts([self.measure(part) for part in range(self.parts)])

    def differentiate(self, language_weights: Mapping[str, float], scale: float) -> None:
        """Runs all text forward and back, so that parameters that need gradients get them.

        They are those of the sum over languages, weighted, of what `measure_all` gives.

        Args:
            language_weights: Weight of every language.
            scale: What to multiply the gradients by.
        """
        parts = Counter(name for half in self._halves for name in {name for name, _ in half})
        for half, dense in zip(self._halves, self._dense, strict=True):
            rows = Counter(name for name, _ in half)
            shares = [scale * language_weights[name] / (parts[name] * rows[name]) for name, _ in half]
            for batch, inputs in self._batches(half):
                with torch.enable_grad():
                    logits = run_model(self._model, inputs).logits
                gradient = torch.empty_like(logits)
                for row, number in enumerate(batch):
                    gradient[row] = _divergence_gradient(dense[number], logits[row].detach()) * shares[number]
                with interruptible():
                    logits.backward(gradient)

    def _logits(self, rows: Rows) -> Iterator[Tensor]:
        """Yields the logits of each row, shape `(tokens, vocabulary)`."""
        for _, inputs in self._batches(rows):
            yield from run_model(self._model, inputs).logits

    def _batches(self, rows: Rows) -> Iterator[tuple[range, dict[str, Tensor]]]:
        """Yields the numbers of rows that are run together, and what the model is called with."""
        start = 0
        while start < len(rows):
            shape = rows[start][1]["input_ids"].shape
            end = start + 1
            while end < len(rows) and end - start < self._batch_size and rows[end][1]["input_ids"].shape == shape:
                end += 1
            yield (
                range(start, end),
                {name: torch.cat([row[name] for _, row in rows[start:end]]) for name in rows[start][1]},
            )
            start = end

    @staticmethod
    def _likely(logits: Tensor) -> tuple[Tensor, Tensor]:
        """Which tokens are the most likely, and the logarithms of their probabilities, both `(tokens, likely)`."""
        logits = logits.float()
        values, tokens = logits.topk(min(_LIKELY, logits.shape[-1]), dim=-1)
        return tokens, values - logits.logsumexp(-1, keepdim=True)


def mean_over_parts(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Language to its mean over the parts of the text that have it."""
    found: dict[str, list[float]] = {}
    for part in parts:
        for language, value in part.items():
            found.setdefault(language, []).append(value)
    return {language: sum(values) / len(values) for language, values in sorted(found.items())}


def _divergence(dense: tuple[Tensor, Tensor], logits: Tensor) -> float:
    """Mean over the tokens of a row."""
    tokens, expected = dense
    logits = logits.float()
    found = logits.gather(-1, tokens) - logits.logsumexp(-1, keepdim=True)
    of_likely = (expected.exp() * (expected - found)).sum(-1)
    left = (1 - expected.exp().sum(-1)).clamp_min(0)
    left_now = (1 - found.exp().sum(-1)).clamp_min(torch.finfo(found.dtype).eps)
    of_others = torch.xlogy(left, left / left_now)
    return float((of_likely + of_others).double().mean())


def _divergence_gradient(dense: tuple[Tensor, Tensor], logits: Tensor) -> Tensor:
    """The gradient of `_divergence` with respect to the logits, in float32 and their shape."""
    tokens, expected = dense
    found = logits.float().softmax(-1)
    of_likely, wanted = found.gather(-1, tokens), expected.exp()
    left = (1 - wanted.sum(-1, keepdim=True)).clamp_min(0)
    left_now = (1 - of_likely.sum(-1, keepdim=True)).clamp_min(torch.finfo(found.dtype).eps)
    gradient = found.mul_(1 - left / left_now).scatter_(-1, tokens, of_likely - wanted)
    return gradient / len(gradient)
