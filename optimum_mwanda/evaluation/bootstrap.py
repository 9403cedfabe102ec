"""Standard errors and confidence intervals by resampling evaluation windows."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
MAX_COUNTS = 2**20  # in one block of resamples: 8 MiB

Array = NDArray[np.float64]


class Estimate(NamedTuple):
    """A figure with its confidence interval.

    Attributes:
        value: The figure on all windows.
        low: Lower end of the interval; None with fewer than two windows to resample.
        high: Upper end.
    """

    value: float
    low: float | None = None
    high: float | None = None


def check_confidence(confidence: float) -> None:
    """Checks a user's confidence.

    Raises:
        ValueError: If it does not lie between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, such as 0.95.")


def resampled_sums(sums: Array, name: str, resamples: int = RESAMPLES) -> Array:
    """Draws windows with replacement and adds them up.

    All columns are added over the same windows, so figures of several models stay paired. From W windows, W - 1 are
    drawn: drawing W would make the variance of each language too small by the factor (W - 1) / W, and that of any mean
    over languages too (Rao and Wu 1988, "Resampling inference with complex survey data").

    Args:
        sums: Sums over each window, (windows, columns), at least two windows.
        name: Seed for the draws. The same name always draws the same windows.
        resamples: Number of draws.

    Returns:
        Sums over the drawn windows, (resamples, columns).
    """
    windows = len(sums)
    random = np.random.default_rng(list(name.encode()))
    blocks = []
    for start in range(0, resamples, block := max(MAX_COUNTS // windows, 1)):
        rows = min(block, resamples - start)
        drawn = random.integers(windows, size=(rows, windows - 1)) + windows * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * windows).reshape(rows, windows)
        blocks.append(counts @ sums)
    return np.concatenate(blocks)


def estimate(value: float, resampled: Array, confidence: float) -> Estimate:
    """A figure with its percentile interval from resampled values, (resamples,); without one if they hold NaN."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail]).tolist()
    return Estimate(value) if math.isnan(low) else Estimate(value, low, high)
