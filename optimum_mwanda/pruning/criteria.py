"""Scores that tell which weights matter least, as pure functions. Symbols and equations are in `docs/method.md`."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..utils import sum_dtype


def pooled_norm(mean_square: Tensor, language_weights: Tensor) -> Tensor:
    """Activation norm pooled over languages, `n_j = sqrt(Σ_l w_l m_j^l)`.

    Args:
        mean_square: `m`, shape `(languages, in)`, float64.
        language_weights: `w`, shape `(languages,)`, float64, summing to 1.

    Returns:
        Shape `(in,)`. With `w_l` proportional to the token counts, it is Wanda's norm (arXiv 2306.11695, eq. 1) up to a
        constant.
    """
    return (language_weights[:, None] * mean_square).sum(0).sqrt()


def cross_lingual_variance(mean_square: Tensor, language_weights: Tensor) -> Tensor:
    """Weighted variance over languages of the root mean square, `v_j = Σ_l w_l (r_j^l − r̄_j)²`; shape `(in,)`."""
    rms = mean_square.sqrt()
    mean = (language_weights[:, None] * rms).sum(0)
    return (language_weights[:, None] * (rms - mean).square()).sum(0)


def activation_probability(active: Tensor, tokens: Tensor, language_weights: Tensor) -> Tensor:
    """Mean share of tokens on which a channel is active, `p_j = Σ_l w_l a_j^l / T_l`.

    Args:
        active: `a`, shape `(languages, in)`, token counts.
        tokens: `T`, shape `(languages,)`.
        language_weights: `w`, shape `(languages,)`.

    Returns:
        Shape `(in,)`, float64, in [0, 1].
    """
    return (language_weights[:, None] * (active.double() / tokens.double()[:, None])).sum(0)


VARIANCE_TERMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": lambda norm, variance: torch.zeros_like(norm),
    "std": lambda norm, variance: variance.sqrt(),
    "variance": lambda norm, variance: variance,
    "relative_variance": lambda norm, variance: torch.where(norm > 0, variance / norm, 0.0),
}


def cross_lingual_norm(mean_square: Tensor, language_weights: Tensor, form: str, weight: float) -> Tensor:
    """Pooled norm plus a cross-lingual term, `n'_j = n_j + λ · term(n_j, v_j)`, reconstructed from arXiv 2505.21171.

    Args:
        mean_square: `m`, shape `(languages, in)`.
        language_weights: `w`, shape `(languages,)`.
        form: Key of `VARIANCE_TERMS`.
        weight: `λ`.

    Returns:
        Shape `(in,)`.
    """
    norm = pooled_norm(mean_square, language_weights)
    return norm + weight * VARIANCE_TERMS[form](norm, cross_lingual_variance(mean_square, language_weights))


def wanda_scores(weight: Tensor, factor: Tensor) -> Tensor:
    """Wanda's score `|W_ij| · f_j` (arXiv 2306.11695, eq. 1).

    Args:
        weight: `W`, shape `(out, in)`.
        factor: `f`, the channel norm and any further per-channel factor, shape `(in,)`.

    Returns:
        Shape `(out, in)`, float32.
    """
    return weight.float().abs().mul_(factor.to(weight.device, torch.float32))


def ria_scores(weight: Tensor, factor: Tensor) -> Tensor:
    """Relative importance and activations, `(|W_ij| / Σ_i|W_ij| + |W_ij| / Σ_j|W_ij|) · f_j` (Zhang et al., ICLR 2024).

    Args:
        weight: `W`, shape `(out, in)`.
        factor: `f`, the channel norm to the power `a` and any further per-channel factor, shape `(in,)`.

    Returns:
        Shape `(out, in)`, float32. A row or column of zeros scores 0.
    """
    magnitude = weight.float().abs()
    columns, rows = (_sum(magnitude, dim) for dim in (0, 1))
    relative = (magnitude / columns).add_(magnitude.div_(rows))
    return relative.mul_(factor.to(weight.device, torch.float32))


def _sum(magnitude: Tensor, dim: int) -> Tensor:
    """Sum in float64 if the device has it, rounded to float32; 1 for a sum of zero."""
    total = magnitude.sum(dim, keepdim=True, dtype=sum_dtype(magnitude.device)).float()
    return torch.where(total == 0, 1.0, total)
