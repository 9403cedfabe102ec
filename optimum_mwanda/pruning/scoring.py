"""From settings and statistics to scores, masks and importances: where the pure functions meet `MWandaConfig`.

To add a criterion or an allocation: write the maths in `criteria.py` or `allocation.py`, add one line to `CRITERIA` or
`IMPORTANCE` below, and its name to `configuration.CHOICES`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..calibration.statistics import CalibrationStatistics, WeightStatistics
from ..configuration import MWandaConfig
from ..modeling.weights import PrunableWeight, check_finite
from .allocation import BlockPlan, SparsityPlan, allocate, cross_lingual_correlation, outlier_share
from .criteria import activation_probability, cross_lingual_norm, pooled_norm, ria_scores, wanda_scores
from .masks import n_of_m_mask, unstructured_mask

Score = Callable[[Tensor, WeightStatistics, Tensor, MWandaConfig], Tensor]


def _magnitude(weight: Tensor, *_: Any) -> Tensor:
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
    entries = statistics.weights
    scores = (
        wanda_scores(w.matrix, pooled_norm(entries[w.name].mean_square, _reached(languages, entries[w.name])))
        for w in weights
    )
    return outlier_share(scores, config.owl_multiplier)


def _cwl(
    weights: Sequence[PrunableWeight], statistics: CalibrationStatistics, _: Tensor, config: MWandaConfig
) -> float | None:
    profiles = [statistics.weights[w.name].mean_square[statistics.weights[w.name].tokens > 0] for w in weights]
    correlations = [cross_lingual_correlation(profile) for profile in profiles if len(profile) > 1]
    if not correlations:
        return None
    mean = sum(correlations) / len(correlations)
    return mean if config.cwl_direction == "shared" else -mean


Importance = Callable[[Sequence[PrunableWeight], CalibrationStatistics, Tensor, MWandaConfig], float | None]

IMPORTANCE: dict[str, Importance] = {
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
    return config.criterion != "magnitude" or config.allocation != "uniform" or config.needs_grams


def compute_mask(
    weight: PrunableWeight,
    entry: WeightStatistics | None,
    languages: Tensor | None,
    sparsity: float,
    config: MWandaConfig,
) -> Tensor:
    """Marks the entries of one weight that are to go.

    Args:
        weight: The weight.
        entry: Its statistics; without them it is pruned by magnitude.
        languages: Weight of every language.
        sparsity: Share to prune.
        config: The settings.

    Returns:
        Boolean, shape `(out, in)`, True where pruned.

    Raises:
        FloatingPointError: If the weight holds NaN or infinite values.
    """
    check_finite(weight)
    if entry is None or languages is None:
        scores = _magnitude(weight.matrix)
    else:
        scores = CRITERIA[config.criterion](weight.matrix, entry, _reached(languages, entry), config)
    return select(scores, sparsity, config)


def select(scores: Tensor, sparsity: float, config: MWandaConfig) -> Tensor:
    """Marks the lowest scores as the pattern and the group of the settings ask; boolean, True where pruned."""
    if config.kept_of is not None:
        return n_of_m_mask(scores, *config.kept_of)
    return unstructured_mask(scores, sparsity, config.group)


def _reached(languages: Tensor, entry: WeightStatistics) -> Tensor:
    """The language weights that count for a matrix: those of languages whose tokens reached it, summing to 1."""
    present = entry.tokens > 0
    if present.all():
        return languages
    weights = torch.where(present, languages, 0.0)
    return weights / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)


def _importance(
    rule: str,
    weights: Sequence[PrunableWeight],
    statistics: CalibrationStatistics,
    languages: Tensor,
    config: MWandaConfig,
) -> float | None:
    """Importance of a block; None if calibration did not reach it, in which case it is taken for average."""
    reached = [weight for weight in weights if weight.name in statistics.weights]
    return IMPORTANCE[rule](reached, statistics, languages, config) if reached else None


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
        importance = [_importance(rule, weights, statistics, shares, config) for weights in blocks.values()]
        known = [value for value in importance if value is not None]
        if known:
            bounds = (config.min_block_sparsity, config.max_block_sparsity)
            middle = sum(known) / len(known)
            measured = [middle if value is None else value for value in importance]
            sparsities = allocate(measured, sizes, target, config.allocation_strength, bounds)
    return SparsityPlan(target, rule, tuple(map(BlockPlan, blocks, sizes, importance, sparsities)))
