"""A confidence interval over seeds: Student's t."""

import math
import statistics
from collections.abc import Sequence

from ...evaluation.bootstrap import Estimate
from ...evaluation.settings import CONFIDENCE


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """The mean of independent figures and its interval, `mean ± t · s / √n` (Student 1908).

    Args:
        values: One figure per seed.
        confidence: Probability that the interval covers the mean over all seeds.

    Returns:
        The estimate; without an interval if there is only one value.
    """
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Estimate(mean)
    half = student_quantile(confidence, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def student_quantile(confidence: float, degrees: int) -> float:
    """The `t` for which a Student variable stays within ±`t` with a given probability.

    Args:
        confidence: The probability, in (0, 1).
        degrees: Degrees of freedom, at least 1.
    """
    from scipy.stats import t as student  # takes long to import

    return float(student.ppf((1 + confidence) / 2, degrees))
