"""How much the loss depends on the rows of each matrix, for whoever decides about them."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..calibration.statistics import CalibrationStatistics
from ..configuration import MWandaConfig
from .experts_policy import expert_coverage
from .scoring import weigh_languages


class Sensitivity(NamedTuple):
    """What is known of the outputs of one weight.

    Attributes:
        rows: `F`, shape `(out,)`, float64.
        factor: `B`, shape `(out, out)`, whose diagonal is `F` up to rounding; None unless rows are coupled.
    """

    rows: Tensor
    factor: Tensor | None


def find_sensitivities(
    statistics: CalibrationStatistics | None, factors: Mapping[str, Tensor], config: MWandaConfig
) -> dict[str, Sensitivity]:
    """What the settings need to know of the outputs of weights.

    Args:
        statistics: Calibration with sensitivities of rows, if the settings ask for them.
        factors: Name of a weight to `B`.
        config: The settings.

    Returns:
        Name of a weight to what is known, without those whose outputs the loss does not depend on, and without experts
        that lack tokens.
    """
    if config.sensitivity == "none" or statistics is None:
        return {}
    language_weights = weigh_languages(config, statistics.tokens)
    lacking = {f"{name}." for name in expert_coverage(statistics, config).lacking}
    found = {}
    for name, sums in statistics.row_sensitivities.items():
        rows = pool_rows(sums, language_weights)
        if rows.any() and not any(map(name.startswith, lacking)):
            found[name] = Sensitivity(rows, factors.get(name))
    return found


def pool_rows(sums: Tensor, language_weights: Tensor) -> Tensor:
    """Sensitivities of rows pooled over languages, `F_i = Σ_l w_l F_i^l / Σ_k F_k^l`.

    Args:
        sums: `F^l`, shape `(languages, out)`, float64; a language with zeros alone does not count.
        language_weights: `w`, shape `(languages,)`.

    Returns:
        Shape `(out,)`.
    """
    totals = sums.sum(1)
    return torch.where(totals > 0, language_weights / totals, 0.0) @ sums


def row_factors(rows: Tensor, exponent: float) -> Tensor:
    """Factors by which the scores of rows are weighed against each other, `(F_i / mean F)^(p/2)`.

    A score such as Wanda's is the root of an error, so half of the exponent counts.

    Args:
        rows: `F`, shape `(out,)`, not all zero.
        exponent: `p`.

    Returns:
        Shape `(out, 1)`, float32.
    """
    return (rows / rows.mean()).pow(exponent / 2).float()[:, None]
