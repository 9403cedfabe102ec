"""How important a block is to each allocation: applies the pure functions to statistics and settings."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from ..calibration.statistics import CalibrationStatistics
from ..configuration import MWandaConfig
from ..modeling.weights import PrunableWeight, check_finite
from .allocation import cross_lingual_correlation, median_score, outlier_share
from .criteria import pooled_norm, wanda_scores
from .scoring import reached
from .spectrum import power_law_exponent


def _wanda_scores(
    weights: Sequence[PrunableWeight], statistics: CalibrationStatistics, language_weights: Tensor
) -> Iterator[Tensor]:
    """Wanda's scores of the weights of one block."""
    for weight in weights:
        check_finite(weight)
        entry = statistics.weights[weight.name]
        yield wanda_scores(weight.matrix, pooled_norm(entry.mean_square, reached(language_weights, entry)))


def owl(
    weights: Sequence[PrunableWeight], statistics: CalibrationStatistics, language_weights: Tensor, config: MWandaConfig
) -> float:
    """OWL: the share of outlying scores."""
    return outlier_share(partial(_wanda_scores, weights, statistics, language_weights), config.owl_multiplier)


def dlp(
    weights: Sequence[PrunableWeight], statistics: CalibrationStatistics, language_weights: Tensor, _: MWandaConfig
) -> float:
    """DLP: minus the median score."""
    return -median_score(_wanda_scores(weights, statistics, language_weights))


def alpha(weights: Sequence[PrunableWeight], *_: Any) -> float:
    """AlphaPruning: minus the mean exponent of the tails of the spectra; no data."""
    for weight in weights:
        check_finite(weight)
    return -sum(power_law_exponent(weight.matrix) for weight in weights) / len(weights)


def cwl(
    weights: Sequence[PrunableWeight], statistics: CalibrationStatistics, _: Tensor, config: MWandaConfig
) -> float | None:
    """CWL: how alike, or how differently, languages use the channels; None if fewer than two reached the block."""
    profiles = [statistics.weights[w.name].mean_square[statistics.weights[w.name].tokens > 0] for w in weights]
    correlations = [cross_lingual_correlation(profile) for profile in profiles if len(profile) > 1]
    if not correlations:
        return None
    mean = sum(correlations) / len(correlations)
    return mean if config.cwl_direction == "shared" else -mean
