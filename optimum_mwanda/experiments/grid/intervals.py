"""A confidence interval over seeds: Student's t."""

import math
import statistics
from collections.abc import Sequence

from ...evaluation.bootstrap import Estimate


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """The mean of independent figures and its interval, `mean ± t · s / √n` (Student 1908).

    Args:
        values: One figure per seed.
        confidence: Probability with which the interval shall cover the mean over all seeds.

    Returns:
        The estimate; without an interval if there is one value only.
    """
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Estimate(mean)
    half = student_quantile(confidence, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def student_quantile(confidence: float, degrees: int) -> float:
    """The `t` that a Student variable stays within, above and below, with a given probability.

    Args:
        confidence: The probability, in (0, 1).
        degrees: Degrees of freedom, at least 1.
    """
    low, high = 0.0, 1.0
    while student_coverage(high, degrees) < confidence:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_coverage(middle, degrees) < confidence else (low, middle)
    return (low + high) / 2


def student_coverage(t: float, degrees: int) -> float:
    """`P(|T| ≤ t)` of a Student variable (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4).

    Args:
        t: At least 0.
        degrees: Degrees of freedom, at least 1.
    """
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = degrees % 2
    term = total = cosine if is_odd else 1.0
    for factor in range(2 if is_odd else 1, degrees - 2, 2):
        term *= cosine**2 * factor / (factor + 1)
        total += term
    if degrees == 1:
        return 2 * angle / math.pi
    return 2 / math.pi * (angle + sine * total) if is_odd else sine * total
