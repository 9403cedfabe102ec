"""From settings and statistics to scores, masks and importances: where the pure functions meet `MWandaConfig`.

To add a criterion or an allocation: write the maths in `criteria.py` or `allocation.py`, add one line to `CRITERIA` or
`IMPORTANCE` below, and its name to `configuration.CHOICES`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..calibration.statistics import CalibrationStatistics, WeightStatistics
from ..configuration import MWandaConfig
from ..modeling.weights import PrunableWeight, check_finite
from .allocation import BlockPlan, SparsityPlan, allocate, cross_lingual_correlation, outlier_share
from .criteria import activation_probability, cross_lingual_norm, pooled_norm, ria_scores, wanda_scores
from .masks import n_of_m_mask, unstructured_mask

Score = Callable[[Tensor, WeightStatistics, Tensor, MWandaConfig], Tensor]


def _magnitude(weight: Tensor, _: WeightStatistics | None, __: Tensor | None, ___: MWandaConfig) -> Tensor:
    return weight.float().abs()


def _wanda(weight: Tensor, entry: WeightStatistics, languages: Tensor, _: MWandaConfig) -> Tensor:
    return wanda_scores(weight, pooled_norm(entry.mean_square, languages))


def _ria(weight: Tensor, entry: WeightStatistics, languages: Tensor, config: MWandaConfig) -> Tensor:
    return ria_scores(weight, pooled_norm(entry.mean_square, languages) ** config.ria_exponent)


def _mwanda(weight: Tensor, entry: WeightStatistics, languages: Tensor, config: MWandaConfig) -> Tensor:
    factor = cross_lingual_norm(entry.mean_square, languages, config.variance, config.variance_weight)
    if config.base == "ria":
        factor = factor**config.ria_exponent
    if config.activity is not None:
        probability = activation_probability(entry.active[config.activity], entry.tokens, languages)
        factor = factor * probability**config.activation_exponent
    return ria_scores(weight, factor) if config.base == "ria" else wanda_scores(weight, factor)


CRITERIA: dict[str, Score] = {
    "magnitude": _magnitude,
    "wanda": _wanda,
    "ria": _ria,
    "mwanda": _mwanda,
}


def _owl(
    weights: Sequence[PrunableWeight], statistics: CalibrationStatistics, languages: Tensor, config: MWandaConfig
) -> float:
    for weight in weights:
        check_finite(weight)
    scores = (wanda_scores(w.matrix, pooled_norm(statistics.weights[w.name].mean_square, languages)) for w in weights)
    return outlier_share(scores, config.owl_multiplier)


def _cwl(
    weights: Sequence[PrunableWeight], statistics: CalibrationStatistics, _: Tensor, config: MWandaConfig
) -> float:
    correlations = [cross_lingual_correlation(statistics.weights[w.name].mean_square) for w in weights]
    mean = sum(correlations) / len(correlations)
    return mean if config.cwl_direction == "shared" else -mean


IMPORTANCE: dict[str, Callable[[Sequence[PrunableWeight], CalibrationStatistics, Tensor, MWandaConfig], float]] = {
    "owl": _owl,
    "cwl": _cwl,
}


def language_weights(config: MWandaConfig, tokens: dict[str, int]) -> Tensor:
    """Weight `w_l` of every language, summing to 1.

    Args:
        config: Its `language_weights` and `language_temperature`.
        tokens: Language to calibration tokens.

    Returns:
        Shape `(languages,)`, float64, in the order of `tokens`.

    Raises:
        ValueError: If a language is weighted that was not calibrated on, or all weights are 0.
    """
    rule = config.language_weights
    counts = torch.tensor(list(tokens.values()), dtype=torch.float64)
    if rule == "equal":
        weights = torch.ones_like(counts)
    elif rule == "proportional":
        weights = counts
    elif rule == "temperature":
        weights = counts ** (1 / config.language_temperature)
    else:
        explicit = dict(rule)  # type: ignore[arg-type]
        if unknown := sorted(set(explicit) - set(tokens)):
            raise ValueError(
                f"language_weights names {', '.join(map(repr, unknown))}, but calibration has: {', '.join(tokens)}."
            )
        weights = torch.tensor([explicit.get(language, 1.0) for language in tokens], dtype=torch.float64)
    if not weights.sum() > 0:
        raise ValueError("language_weights gives every calibrated language the weight 0.")
    return weights / weights.sum()


def needs_statistics(config: MWandaConfig) -> bool:
    """Whether masks depend on calibration data at all."""
    return config.criterion != "magnitude" or config.allocation != "uniform"


def compute_mask(
    weight: PrunableWeight,
    entry: WeightStatistics | None,
    languages: Tensor | None,
    sparsity: float,
    config: MWandaConfig,
) -> Tensor:
    """Marks the entries of one weight that are to go.

    Returns:
        Boolean, shape `(out, in)`, True where pruned.

    Raises:
        FloatingPointError: If the weight holds NaN or infinite values.
    """
    check_finite(weight)
    scores = CRITERIA[config.criterion](weight.matrix, entry, languages, config)  # type: ignore[arg-type]
    if config.kept_of is not None:
        return n_of_m_mask(scores, *config.kept_of)
    return unstructured_mask(scores, sparsity, config.group)


def make_plan(
    blocks: dict[str, list[PrunableWeight]], statistics: CalibrationStatistics | None, config: MWandaConfig
) -> SparsityPlan:
    """Allocates the target sparsity over the blocks.

    Raises:
        FloatingPointError: If OWL meets NaN or infinite weights.
        ValueError: If CWL is asked for with fewer than two languages.
    """
    target, rule = config.target_sparsity, str(config.allocation)
    sizes = [sum(weight.numel for weight in weights) for weights in blocks.values()]
    importance: list[float | None] = [None] * len(blocks)
    sparsities = [target] * len(blocks)
    if rule != "uniform" and statistics is not None:
        if rule == "cwl" and len(statistics.languages) < 2:
            raise ValueError(
                "allocation='cwl' compares languages, but there is only "
                f"{', '.join(map(repr, statistics.languages))}: calibrate on two or more, or choose 'owl' or 'uniform'."
            )
        shares = language_weights(config, statistics.tokens)
        measured = [IMPORTANCE[rule](weights, statistics, shares, config) for weights in blocks.values()]
        bounds = (config.min_block_sparsity, config.max_block_sparsity)
        sparsities = allocate(measured, sizes, target, config.allocation_strength, bounds)
        importance = list(measured)
    return SparsityPlan(target, rule, tuple(map(BlockPlan, blocks, sizes, importance, sparsities)))
