"""From settings and statistics to scores and masks: applies the pure functions as `MWandaConfig` says."""

from typing import Any

import torch
from torch import Tensor

from ..calibration.statistics import WeightStatistics
from ..configuration import MWandaConfig
from ..modeling.weights import PrunableWeight, check_finite
from ..registry import score_for
from .criteria import activation_probability, cross_lingual_norm, pooled_norm, ria_scores, wanda_scores
from .selection import select


def magnitude(weight: Tensor, *_: Any) -> Tensor:
    """The score `magnitude`, without data."""
    return weight.float().abs()


def wanda(weight: Tensor, entry: WeightStatistics, language_weights: Tensor, _: MWandaConfig) -> Tensor:
    """The score `wanda`."""
    return wanda_scores(weight, pooled_norm(entry.mean_square, language_weights))


def ria(weight: Tensor, entry: WeightStatistics, language_weights: Tensor, config: MWandaConfig) -> Tensor:
    """The score `ria`."""
    return ria_scores(weight, pooled_norm(entry.mean_square, language_weights) ** config.ria_exponent)


def mwanda(weight: Tensor, entry: WeightStatistics, language_weights: Tensor, config: MWandaConfig) -> Tensor:
    """The score `mwanda`, on either base."""
    factor = cross_lingual_norm(entry.mean_square, language_weights, config.variance, config.variance_weight)
    if config.base == "ria":
        factor = factor**config.ria_exponent
    if config.activity is not None:
        probability = activation_probability(entry.active[config.activity], entry.tokens, language_weights)
        factor = factor * probability**config.activation_exponent
    return ria_scores(weight, factor) if config.base == "ria" else wanda_scores(weight, factor)


def weigh_languages(config: MWandaConfig, tokens: dict[str, int]) -> Tensor:
    """Weight `w_l` of every language, summing to 1.

    Args:
        config: Its `language_weights` and `language_temperature`.
        tokens: Language to calibration tokens.

    Returns:
        Shape `(languages,)`, float64, in the order of `tokens`.

    Raises:
        ValueError: If a weight names a language that was not calibrated on, all weights are 0, or the weights are still
            to be found.
    """
    rule = config.language_weights
    if rule == "minimax":
        raise ValueError(
            "language_weights='minimax' is found by pruning several times: call prune(model, dataset), or give the "
            "weights that find_language_weights() finds."
        )
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
        raise ValueError("language_weights gives every calibrated language the weight 0: give one a weight above 0.")
    return weights / weights.sum()


def compute_mask(
    weight: PrunableWeight,
    entry: WeightStatistics | None,
    language_weights: Tensor | None,
    sparsity: float,
    config: MWandaConfig,
    factors: Tensor | None = None,
) -> Tensor:
    """Marks the entries of one weight to prune.

    Args:
        weight: The weight.
        entry: Its statistics; without them, the fallback of the criterion decides.
        language_weights: Weight of every language.
        sparsity: Share to prune.
        config: The settings.
        factors: By what to multiply the scores of each row, shape `(out, 1)`; only used with statistics.

    Returns:
        Boolean, shape `(out, in)`, True where pruned.

    Raises:
        FloatingPointError: If the weight holds NaN or infinite values.
        ValueError: If scores that are multiplied are negative.
    """
    check_finite(weight)
    known = None if entry is None or language_weights is None else (entry, reached(language_weights, entry))
    score, needs_data = score_for(config.criterion, has_statistics=known is not None)
    scores = score(weight.matrix, *(known if needs_data and known else (None, None)), config)
    if factors is not None and known is not None:
        if (scores < 0).any():
            raise ValueError(
                f"criterion={config.criterion!r} gives negative scores, which cannot be weighed by the sensitivity of "
                "their row: give sensitivity='none'."
            )
        scores = scores * factors.to(scores)
    return select(scores, sparsity, config)


def reached(language_weights: Tensor, entry: WeightStatistics) -> Tensor:
    """The language weights for a matrix: only languages with tokens that reached it count; they sum to 1."""
    present = entry.tokens > 0
    if present.all():
        return language_weights
    weights = torch.where(present, language_weights, 0.0)
    return weights / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
