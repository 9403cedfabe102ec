"""Layerwise allocation: how much sparsity each block gets, as pure functions; equations are in `docs/method.md`."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ..utils import sum_dtype

_ON_CPU, _ELSEWHERE = 2**16, 2**22
"""Entries of a matrix that are summed at a time; so few stay in the cache of a CPU."""


def allocate(
    importance: Sequence[float],
    parameters: Sequence[int],
    target: float,
    strength: float,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> list[float]:
    """Maps block importances to block sparsities with a parameter-weighted mean of exactly the target.

    `s_b = S − 2λ·(D_b − min D) / (max D − min D)`, shifted by a constant (as in OWL's official code, arXiv 2310.05175,
    for equal blocks); whatever a block at a bound cannot take is spread evenly over the free ones.

    Args:
        importance: `D`, one per block; higher keeps more.
        parameters: `P`, prunable weights per block.
        target: `S`.
        strength: `λ`, half the range of sparsities.
        bounds: Lowest and highest sparsity of a block, with the target between them.

    Returns:
        One sparsity per block, rounded to 12 decimals.
    """
    protection = _relative(torch.tensor(importance, dtype=torch.float64))
    return _protect(protection, parameters, target, strength, bounds)


def allocate_outliers(
    importance: Sequence[float],
    parameters: Sequence[int],
    target: float,
    strength: float,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> list[float]:
    """Maps block importances to block sparsities so that only blocks far above the others are pruned less.

    `s_b = S − 2λ·clip(D_b / median(D) − 3/2, 0, 1)`, shifted as in `allocate`. There the importances of every model
    span the same range of sparsities, however little they differ; here blocks that are much alike get much the same
    sparsity.

    Args:
        importance: `D`, one per block, not negative; higher keeps more.
        parameters: `P`, prunable weights per block.
        target: `S`.
        strength: `λ`: a block of at least 5/2 times the median is protected by `2λ`, one of at most 3/2 times not.
        bounds: Lowest and highest sparsity of a block, with the target between them.

    Returns:
        One sparsity per block, rounded to 12 decimals.
    """
    scores = torch.tensor(importance, dtype=torch.float64)
    median = scores.quantile(0.5)
    protection = torch.where(scores > 1.5 * median, (scores / median - 1.5).clamp(max=1), 0.0)
    return _protect(protection, parameters, target, strength, bounds)


def allocate_ratios(
    importance: Sequence[float],
    parameters: Sequence[int],
    target: float,
    spread: float,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> list[float]:
    """Maps block importances to block sparsities as AlphaPruning does (arXiv 2410.10912, eq. 3, official code).

    `s_b = c·(1 + ε − 2ε·(D_b − min D) / (max D − min D))`, so that the sparsities of the most and the least important
    block are in the ratio `(1 − ε) : (1 + ε)` for any target; `c` meets the target. In `allocate`, the range is fixed
    instead.

    Args:
        importance: `D`, one per block; higher keeps more. In the paper, minus the mean exponent of the block's weights.
        parameters: `P`, prunable weights per block.
        target: `S`.
        spread: `ε`, in [0, 1].
        bounds: Lowest and highest sparsity of a block, with the target between them.

    Returns:
        One sparsity per block, rounded to 12 decimals.
    """
    scores = torch.tensor(importance, dtype=torch.float64)
    sizes = torch.tensor(parameters, dtype=torch.float64)
    ratios = 1 + spread - 2 * spread * _relative(scores)
    scale = target * sizes.sum() / (ratios * sizes).sum()
    return allocate(importance, parameters, target, spread * scale.item(), bounds)


def _protect(
    protection: Tensor, parameters: Sequence[int], target: float, strength: float, bounds: tuple[float, float]
) -> list[float]:
    """Takes `2λ` times its protection, in [0, 1], off the sparsity of every block, and meets the target."""
    sizes = torch.tensor(parameters, dtype=torch.float64)
    sparsities = _shift_to_target(-2 * strength * protection, sizes, target, bounds).tolist()
    return [round(sparsity, 12) for sparsity in sparsities]


def _relative(scores: Tensor) -> Tensor:
    """Scores scaled to [0, 1], all 0 if they are equal."""
    spread = scores.max() - scores.min()
    return (scores - scores.min()) / spread if spread > 0 else torch.zeros_like(scores)


def _shift_to_target(start: Tensor, sizes: Tensor, target: float, bounds: tuple[float, float]) -> Tensor:
    """Finds the constant `c` for which `clip(start + c, bounds)` has the weighted mean `target`.

    The mean is a rising, piecewise linear function of `c` with known bends: find the piece, then solve it.
    """
    low, high = bounds
    bends, _ = torch.cat([low - start, high - start]).sort()
    wanted = target * sizes.sum()
    totals = ((start + bends[:, None]).clamp(low, high) * sizes).sum(1)
    piece = int(torch.searchsorted(totals, wanted).clamp(1, len(bends) - 1))
    middle = (bends[piece - 1] + bends[piece]) / 2
    free = (start + middle > low) & (start + middle < high)
    clipped = (start + middle).clamp(low, high)
    if not free.any():
        return clipped
    shift = (wanted - (clipped * sizes)[~free].sum() - (start * sizes)[free].sum()) / sizes[free].sum()
    return torch.where(free, start + shift, clipped).clamp(low, high)


def outlier_share(scores: Callable[[], Iterable[Tensor]], multiplier: float) -> float:
    """OWL's layer outlier distribution, `D = 100 · mean(A > M · mean(A))` (arXiv 2310.05175, eq. 1, official code).

    Args:
        scores: Gives `A = |W|·n` of every matrix of one block, float32; called twice, so that only the scores of one
            matrix are in memory.
        multiplier: `M`.

    Returns:
        Percentage of the block's entries that are outliers.
    """

    def totals(a: Tensor) -> tuple[int, float]:
        # To sum in another type than that of the scores takes a copy of them, so it is done part by part.
        size = max(1, (_ON_CPU if a.device.type == "cpu" else _ELSEWHERE) // max(1, a.shape[1]))
        parts = [part.sum(dtype=sum_dtype(a.device)) for part in torch.split(a, size)]
        return a.numel(), torch.stack(parts).sum().item()

    # A loop would keep the scores of a matrix while those of the next one are computed.
    sums = list(map(totals, scores()))
    count = sum(numel for numel, _ in sums)
    mean = sum(total for _, total in sums) / count
    threshold = torch.tensor(multiplier * mean, dtype=torch.float32)

    def outliers(a: Tensor) -> int:
        return int(torch.count_nonzero(a > threshold.to(a.device)))  # a sum would take 8 bytes per entry

    return 100 * sum(map(outliers, scores())) / count


def median_score(scores: Iterable[Tensor]) -> float:
    """DLP's measure of how *un*important a block is, the median of its scores (arXiv 2505.23807).

    This is what the text of the paper says. The published code for unstructured pruning takes the mean instead.

    `allocate` maps DLP's importance `1 − median_b / Σ median` to a sparsity, with λ = 0.15 in the paper. Only order and
    spacing matter there, so minus the median serves as the same importance.

    Args:
        scores: `A = |W|·n` of every matrix of one block, float32.

    Returns:
        The median over all entries of the block; of two middle entries, the lower one.
    """
    return torch.cat([a.flatten() for a in scores]).median().item()


def cross_lingual_correlation(mean_square: Tensor) -> float:
    """Mean Pearson correlation between the channel profiles `r^l` of all pairs of languages.

    Args:
        mean_square: `m`, shape `(languages, in)`, at least two languages.

    Returns:
        In [-1, 1]; a pair with a constant profile counts 0.
    """
    rms = mean_square.double().sqrt()
    centred = rms - rms.mean(1, keepdim=True)
    norms = centred.norm(dim=1)
    flat = norms <= 1e-12 * rms.norm(dim=1)
    unit = torch.where(flat[:, None], 0.0, centred / norms[:, None])
    languages = len(rms)
    pairs = (unit.sum(0).square().sum() - unit.square().sum()) / 2
    return float(pairs / (languages * (languages - 1) / 2))
