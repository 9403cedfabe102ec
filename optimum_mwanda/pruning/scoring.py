"""From settings and statistics to scores and masks: where the pure functions meet `MWandaConfig`.

To add a criterion: write the maths in `criteria.py`, add one line to `CRITERIA` below, and its name to
`validation.CHOICES`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..calibration.statistics import WeightStatistics
from ..configuration import MWandaConfig
from ..modeling.weights import PrunableWeight, check_finite
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


DATA_FREE = ("uniform", "alpha")
"""Allocations that look at no data."""

CRITERIA: dict[str, Score] = {
    "magnitude": _magnitude,
    "wanda": _wanda,
    "ria": _ria,
    "mwanda": _mwanda,
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
    return config.criterion != "magnitude" or config.allocation not in DATA_FREE or config.needs_grams


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
        scores = CRITERIA[config.criterion](weight.matrix, entry, reached(languages, entry), config)
    return select(scores, sparsity, config)


def select(scores: Tensor, sparsity: float, config: MWandaConfig) -> Tensor:
    """Marks the lowest scores as the pattern and the group of the settings ask; boolean, True where pruned."""
    if config.kept_of is not None:
        return n_of_m_mask(scores, *config.kept_of)
    return unstructured_mask(scores, sparsity, config.group)


def reached(languages: Tensor, entry: WeightStatistics) -> Tensor:
    """The language weights that count for a matrix: those of languages whose tokens reached it, summing to 1."""
    present = entry.tokens > 0
    if present.all():
        return languages
    weights = torch.where(present, languages, 0.0)
    return weights / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
