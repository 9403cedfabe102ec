"""The shape of a weight's spectrum: how heavy its tail is says how well a layer is trained, without any data."""

import torch
from torch import Tensor

from ..utils import sum_dtype

_BINS = 100


def power_law_exponent(weight: Tensor) -> float:
    """Exponent `α` of the tail `p(λ) ∝ λ^−α` of the eigenvalues of `WᵀW` (AlphaPruning, arXiv 2410.10912).

    A tail of the `n` eigenvalues from `λ_min` on has Hill's estimate `α = 1 + n / Σ ln(λ / λ_min)`. As in the official
    code, `λ_min` lies no higher than 1.5 times the peak of the spectrum, which is the most frequent of 100 bins of
    `log10 λ`, and is the one whose tail is closest to its own power law by the Kolmogorov-Smirnov distance.

    Args:
        weight: `W`, shape `(out, in)`.

    Returns:
        `α > 1`. Lower means a heavier tail: a layer that the paper prunes less.

    Raises:
        ValueError: If there are fewer than two nonzero singular values or all are equal, so that there is no tail.
    """
    singular = torch.linalg.svdvals(weight.detach().to(sum_dtype(weight.device))).cpu().double()
    nonzero = singular[singular > max(weight.shape) * torch.finfo(torch.float32).eps * singular.max()]
    eigenvalues = nonzero.square().flip(0)
    if len(eigenvalues) < 2 or eigenvalues[-1] <= eigenvalues[0] * (1 + 1e-6):
        raise ValueError(
            f"A weight of shape {tuple(weight.shape)} has no tail to fit a power law to, as its nonzero singular "
            "values are fewer than two or all equal: exclude it, or choose another allocation."
        )
    logs = eigenvalues.log()
    distances: list[float] = []
    exponents: list[float] = []
    for start in range(_last_start(eigenvalues) + 1):
        tail = logs[start:] - logs[start]
        if tail[-1] <= 0:
            break
        exponent = 1 + len(tail) / tail.sum().item()
        empirical = torch.arange(len(tail), dtype=torch.float64) / len(tail)
        fitted = 1 - (tail * (1 - exponent)).exp()
        distances.append((fitted - empirical).abs().max().item())
        exponents.append(exponent)
    return exponents[distances.index(min(distances))]


def _last_start(eigenvalues: Tensor) -> int:
    """Position of the last eigenvalue, of ascending ones, at which a tail may start."""
    logs = eigenvalues.log10()
    low, high = logs[0].item(), logs[-1].item()
    counts = torch.histc(logs, _BINS, min=low, max=high)
    peak = 10 ** (low + (high - low) * int(counts.argmax()) / _BINS)
    return min(int((eigenvalues <= 1.5 * peak).sum()), len(eigenvalues) - 1) - 1
