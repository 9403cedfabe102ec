"""Weights of languages that follow what each language loses, as pure functions."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

DIGITS = 6
"""Decimals of a weight: what is tried is what is written down."""
_MOST = 3.0
"""Largest exponent, so that one language cannot take the weight of all others at once."""


def follow_losses(weights: Mapping[str, float], losses: Mapping[str, float], rate: float) -> dict[str, float]:
    """Raises the weights of languages that lose more than the mean, and lowers the others.

    They become `w_l · exp(min(η (x_l / x̄ − 1), 3))`, scaled to a mean of 1.

    Args:
        weights: Language to its weight `w_l`.
        losses: Language to its loss `x_l`, at least 0; a language that is not in it counts as average.
        rate: `η`.

    Returns:
        Language to its new weight, with a mean of 1.
    """
    mean = fmean(losses.values())
    if mean <= 0:
        return dict(weights)
    excess = {name: min(rate * (losses.get(name, mean) / mean - 1), _MOST) for name in weights}
    raised = {name: each * math.exp(excess[name]) for name, each in weights.items()}
    scale = len(raised) / math.fsum(raised.values())
    return {name: round(each * scale, DIGITS) for name, each in raised.items()}


def best_round(rounds: Sequence[Mapping[str, float]], bound: float) -> int:
    """The round in which the language that loses most loses least, among those whose mean is within a bound.

    Args:
        rounds: Language to its loss in each round; the first one is what the bound is about.
        bound: Share by which the mean may exceed that of the first round.

    Returns:
        Its number; the earliest of several.
    """
    most = (1 + bound) * fmean(rounds[0].values())
    allowed = [number for number, losses in enumerate(rounds) if not number or fmean(losses.values()) <= most]
    return min(allowed, key=lambda number: max(rounds[number].values()))
