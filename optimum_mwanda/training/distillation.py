"""What a pruned model learns from its dense original, token by token."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..values import check_number

CHUNK = 256
"""Tokens whose probabilities are in memory together."""


def distillation_loss(
    logits: Tensor,
    dense_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 0.5,
    temperature: float = 1.0,
    weights: Tensor | None = None,
    num_items: Tensor | int | None = None,
    ignore_index: int = -100,
    chunk: int = CHUNK,
) -> Tensor:
    """Mixes the divergence from the dense model's predictions with the loss of language modelling.

    Per token it is alpha * T ** 2 * KL(p || q) + (1 - alpha) * CE, with the dense model's probabilities p and the
    pruned model's q at temperature T (Hinton et al. 2015, arXiv 1503.02531), and the cross-entropy CE at temperature 1.
    Tokens are taken a chunk at a time, forward and backward: beside the two models' logits and the gradient of the
    logits, nothing is as large as they are.

    Args:
        logits: Of the pruned model, `(batch, tokens, vocabulary)`.
        dense_logits: Of the dense model, the same shape.
        labels: `(batch, tokens)`, not shifted: the logits of a token predict the label behind it.
        alpha: Weight of the divergence, from 0 (language modelling only) to 1 (distillation only).
        temperature: T.
        weights: Weight of each row, `(batch,)`, for example `need_weights` of its language; None: 1.
        num_items: What the sum over tokens is divided by: the targets of all batches that are accumulated. None: the
            targets of this batch.
        ignore_index: Label of what is not a target.
        chunk: Tokens to take at a time.

    Returns:
        The loss, in float32, or in float64 if the logits are.

    Raises:
        ValueError: If shapes differ, or a setting is not allowed.
    """
    if logits.shape != dense_logits.shape:
        raise ValueError(
            f"The logits of the model have shape {tuple(logits.shape)}, those of the dense model "
            f"{tuple(dense_logits.shape)}: give a dense model with the same vocabulary, and the same inputs to both."
        )
    check_number("alpha", alpha, lambda a: 0 <= a <= 1, "a number from 0 to 1")
    check_number("temperature", temperature, lambda t: t > 0, "a number above 0")
    check_number("chunk", chunk, lambda c: c >= 1 and c == int(c), "a whole number of at least 1")
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=ignore_index).to(logits.device)
    targets = targets.masked_fill(targets == ignore_index, -1)
    flat = logits.flatten(0, 1), dense_logits.detach().to(logits.device).flatten(0, 1), targets.flatten()
    losses: Tensor = _TokenLosses.apply(*flat, alpha, temperature, chunk)  # type: ignore[no-untyped-call]
    if weights is not None:
        losses = losses * weights.to(losses).repeat_interleave(targets.shape[1])
    if num_items is None:
        num_items = (targets >= 0).sum().clamp(min=1)
    return losses.sum() / (num_items.to(losses.device) if isinstance(num_items, Tensor) else num_items)


class _TokenLosses(torch.autograd.Function):
    """The loss of each token, 0 where there is no target.

    The probabilities are computed again for the gradient, alpha * T * (q - p) + (1 - alpha) * (q' - y), with q' at
    temperature 1 and y the label as one-hot.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, dense_logits: Tensor, targets: Tensor, alpha: float, temperature: float, chunk: int
    ) -> Tensor:
        ctx.save_for_backward(logits, dense_logits, targets)
        ctx.settings = alpha, temperature, chunk
        parts = []
        for s, t, y in _chunks(chunk, logits, dense_logits, targets):
            s, loss = _wide(s), torch.zeros((), dtype=_wide(s[:0]).dtype, device=s.device)
            if alpha > 0:
                log_q, log_p = (s / temperature).log_softmax(1), (_wide(t) / temperature).log_softmax(1)
                p = log_p.exp()
                loss = alpha * temperature**2 * (p * (log_p - log_q)).where(p > 0, 0).sum(1)
            if alpha < 1:
                loss = loss - (1 - alpha) * s.log_softmax(1).gather(1, y.clamp(min=0)[:, None])[:, 0]
            parts.append(loss.where(y >= 0, 0))
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        logits, dense_logits, targets = ctx.saved_tensors
        alpha, temperature, chunk = ctx.settings
        result = torch.empty_like(logits)
        for s, t, y, g, out in _chunks(chunk, logits, dense_logits, targets, gradient, result):
            s, d = _wide(s), 0
            if alpha > 0:
                d = alpha * temperature * ((s / temperature).softmax(1) - (_wide(t) / temperature).softmax(1))
            if alpha < 1:
                q = s.softmax(1)
                rows = torch.arange(len(y), device=y.device)
                q[rows, y.clamp(min=0)] -= 1
                d = d + (1 - alpha) * q
            out.copy_((g[:, None] * d).where(y[:, None] >= 0, 0))
        return result, None, None, None, None, None


def _chunks(size: int, *tensors: Tensor) -> Any:
    return zip(*(torch.split(tensor, size) for tensor in tensors), strict=True)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
