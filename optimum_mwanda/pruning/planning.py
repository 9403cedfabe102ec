"""From settings and statistics to the sparsity of every block: where allocations meet `MWandaConfig`.

To add an allocation: write the maths in `allocation.py`, add one line to `IMPORTANCE` below, and its name to
`validation.CHOICES`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from ..calibration.statistics import CalibrationStatistics
from ..configuration import MWandaConfig
from ..modeling.weights import PrunableWeight, check_finite
from .allocation import (
    BlockPlan,
    SparsityPlan,
    allocate,
    allocate_ratios,
    cross_lingual_correlation,
    median_score,
    outlier_share,
)
from .criteria import pooled_norm, wanda_scores
from .scoring import DATA_FREE, language_weights, reached
from .spectrum import power_law_exponent


def _wanda_scores(
    weights: Sequence[PrunableWeight], statistics: CalibrationStatistics, languages: Tensor
) -> Iterator[Tensor]:
    """Wanda's scores of the weights of one block."""
    for weight in weights:
        check_finite(weight)
        entry = statistics.weights[weight.name]
        yield wanda_scores(weight.matrix, pooled_norm(entry.mean_square, reached(languages, entry)))


def _owl(
    weights: Sequence[PrunableWeight], statistics: CalibrationStatistics, languages: Tensor, config: MWandaConfig
) -> float:
    return outlier_share(_wanda_scores(weights, statistics, languages), config.owl_multiplier)


def _dlp(
    weights: Sequence[PrunableWeight], statistics: CalibrationStatistics, languages: Tensor, _: MWandaConfig
) -> float:
    return -median_score(_wanda_scores(weights, statistics, languages))


def _alpha(weights: Sequence[PrunableWeight], *_: Any) -> float:
    for weight in weights:
        check_finite(weight)
    return -sum(power_law_exponent(weight.matrix) for weight in weights) / len(weights)


def _cwl(
    weights: Sequence[PrunableWeight], statistics: CalibrationStatistics, _: Tensor, config: MWandaConfig
) -> float | None:
    profiles = [statistics.weights[w.name].mean_square[statistics.weights[w.name].tokens > 0] for w in weights]
    correlations = [cross_lingual_correlation(profile) for profile in profiles if len(profile) > 1]
    if not correlations:
        return None
    mean = sum(correlations) / len(correlations)
    return mean if config.cwl_direction == "shared" else -mean


Importance = Callable[..., float | None]

IMPORTANCE: dict[str, Importance] = {
    "owl": _owl,
    "cwl": _cwl,
    "dlp": _dlp,
    "alpha": _alpha,
}


def _importance(
    rule: str,
    weights: Sequence[PrunableWeight],
    statistics: CalibrationStatistics | None,
    languages: Tensor | None,
    config: MWandaConfig,
) -> float | None:
    """Importance of a block; None if calibration did not reach it, in which case it is taken for average."""
    if statistics is not None and rule not in DATA_FREE:
        weights = [weight for weight in weights if weight.name in statistics.weights]
    return IMPORTANCE[rule](weights, statistics, languages, config) if weights else None


def make_plan(
    blocks: dict[str, list[PrunableWeight]], statistics: CalibrationStatistics | None, config: MWandaConfig
) -> SparsityPlan:
    """Allocates the target sparsity over the blocks.

    Raises:
        FloatingPointError: If an allocation meets NaN or infinite weights.
        ValueError: If CWL is asked for with fewer than two languages, or a weight has no spectrum to go by.
    """
    target, rule = config.target_sparsity, str(config.allocation)
    sizes = [sum(weight.numel for weight in weights) for weights in blocks.values()]
    importance: list[float | None] = [None] * len(blocks)
    sparsities = [target] * len(blocks)
    if rule != "uniform":
        if rule == "cwl" and statistics is not None and len(statistics.languages) < 2:
            raise ValueError(
                "allocation='cwl' compares languages, but there is only "
                f"{', '.join(map(repr, statistics.languages))}: calibrate on two or more, or choose 'owl' or 'uniform'."
            )
        shares = None if statistics is None else language_weights(config, statistics.tokens)
        importance = [_importance(rule, weights, statistics, shares, config) for weights in blocks.values()]
        known = [value for value in importance if value is not None]
        if known:
            bounds = (config.min_block_sparsity, config.max_block_sparsity)
            middle = sum(known) / len(known)
            measured = [middle if value is None else value for value in importance]
            share_out = allocate_ratios if rule == "alpha" else allocate
            sparsities = share_out(measured, sizes, target, config.allocation_strength, bounds)
    return SparsityPlan(target, rule, tuple(map(BlockPlan, blocks, sizes, importance, sparsities)))
