"""The shape of a weight's spectrum: the weight of its tail tells how well a layer is trained, without data."""

import torch
from torch import Tensor

from ..utils import sum_dtype

_BINS = 100


def power_law_exponent(weight: Tensor) -> float:
    """Exponent `α` of the tail `p(λ) ∝ λ^−α` of the eigenvalues of `WᵀW` (AlphaPruning, arXiv 2410.10912).

    A tail of the `n` eigenvalues from `λ_min` on has Hill's estimate `α = 1 + n / Σ ln(λ / λ_min)`. `λ_min` is near the
    peak of the spectrum (the paper's fix-finger method). The candidates are the eigenvalues between 0.95 and 1.5 times
    the most frequent of 100 bins of `log10 λ`; the one with the tail closest to its own power law, by the
    Kolmogorov-Smirnov distance, is chosen. The official code intends the same, but takes the logarithm of the lower
    bound and not of the upper one, so its candidates depend on the scale of the weights.

    Args:
        weight: `W`, shape `(out, in)`.

    Returns:
        `α > 1`. Lower means a heavier tail: the paper prunes such a layer less.

    Raises:
        ValueError: If there is no tail, because fewer than two singular values are nonzero or all are equal.
    """
    singular = torch.linalg.svdvals(weight.detach().to(sum_dtype(weight.device))).cpu().double()
    nonzero = singular[singular > max(weight.shape) * torch.finfo(torch.float32).eps * singular.max()]
    eigenvalues = nonzero.square().flip(0)
    if len(eigenvalues) < 2 or eigenvalues[-1] <= eigenvalues[0] * (1 + 1e-6):
        raise ValueError(
            f"A weight of shape {tuple(weight.shape)} has no tail to fit a power law to, because its nonzero singular "
            "values are fewer than two or all equal: exclude it, or choose another allocation."
        )
    logs = eigenvalues.log()
    distances: list[float] = []
    exponents: list[float] = []
    for start in _tail_starts(eigenvalues):
        tail = logs[start:] - logs[start]
        exponent = 1 + len(tail) / tail.sum().item()
        empirical = torch.arange(len(tail), dtype=torch.float64) / len(tail)
        fitted = 1 - (tail * (1 - exponent)).exp()
        distances.append((fitted - empirical).abs().max().item())
        exponents.append(exponent)
    return exponents[distances.index(min(distances))]


def _tail_starts(eigenvalues: Tensor) -> list[int]:
    """Positions near the peak, in ascending eigenvalues; the first position if all above the peak are equal."""
    logs = eigenvalues.log10()
    low, high = logs[0].item(), logs[-1].item()
    counts = torch.histc(logs, _BINS, min=low, max=high)
    peak = 10 ** (low + (high - low) * int(counts.argmax()) / _BINS)
    near = (eigenvalues >= 0.95 * peak) & (eigenvalues <= 1.5 * peak) & (eigenvalues < eigenvalues[-1] * (1 - 1e-6))
    return near.nonzero().flatten().tolist() or [0]
