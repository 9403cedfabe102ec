"""Slow reference for the baselines' importances and mappings, written from the papers' formulas alone."""

import math
from fractions import Fraction

import numpy as np


def reference_power_law_exponent(weight: np.ndarray) -> float:
    """AlphaPruning's exponent of a matrix: every allowed tail is fitted and compared entry by entry."""
    gram = weight.astype(np.float64).T @ weight.astype(np.float64)
    order = min(weight.shape)
    eigenvalues = sorted(float(value) for value in np.linalg.eigvalsh(gram))[-order:]
    low, high = math.log10(eigenvalues[0]), math.log10(eigenvalues[-1])
    edges = [low + (high - low) * i / 100 for i in range(101)]
    counts = [0] * 100
    for value in eigenvalues:
        counts[min(int((math.log10(value) - low) / (high - low) * 100), 99)] += 1
    peak = 10 ** edges[counts.index(max(counts))]
    fits = []
    for start, lowest in enumerate(eigenvalues[:-1]):
        if not 0.95 * peak <= lowest <= 1.5 * peak:
            continue
        tail = eigenvalues[start:]
        exponent = 1 + len(tail) / sum(math.log(value / lowest) for value in tail)
        distance = max(
            abs(1 - (value / lowest) ** (1 - exponent) - rank / len(tail)) for rank, value in enumerate(tail)
        )
        fits.append((distance, exponent))
    return min(fits)[1]


def reference_ratios(importance: list[float], sizes: list[int], target: float, spread: float) -> list[float]:
    """AlphaPruning's mapping without bounds, in exact fractions."""
    scores = [Fraction(value) for value in importance]
    epsilon = Fraction(spread)
    low, high = min(scores), max(scores)
    ratios = [1 - epsilon + 2 * epsilon * ((high - score) / (high - low) if high > low else 0) for score in scores]
    scale = Fraction(target) * sum(sizes) / sum(ratio * size for ratio, size in zip(ratios, sizes, strict=True))
    return [float(scale * ratio) for ratio in ratios]


def reference_dlp(medians: list[float], target: float, alpha: float) -> list[float]:
    """DLP's block sparsities from the medians, for blocks of one size, as in the paper's steps."""
    shares = [median / sum(medians) for median in medians]
    importance = [1 - share for share in shares]
    low, high = min(importance), max(importance)
    density = [(value - low) / (high - low) * 2 * alpha for value in importance]
    centre = sum(density) / len(density)
    return [1 - (value - centre + 1 - target) for value in density]
