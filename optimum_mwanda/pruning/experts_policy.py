"""What happens to experts that calibration barely reached."""

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..calibration.coverage import ExpertCoverage
from ..calibration.statistics import CalibrationStatistics, WeightStatistics
from ..configuration import MWandaConfig
from ..modeling.weights import PrunableWeight, Weights

logger = logging.getLogger(__name__)

# Matrices that read the inner channels of an expert, which have another meaning in every expert.
INNER = ("down_proj", "w2", "wo", "output_linear")


def expert_coverage(statistics: CalibrationStatistics, config: MWandaConfig) -> ExpertCoverage:
    """Tokens that reached each expert, with the number that the settings want."""
    return ExpertCoverage(statistics.expert_tokens, statistics.languages, config.min_expert_tokens)


def leave_out_experts(weights: Weights, statistics: CalibrationStatistics, config: MWandaConfig) -> Weights:
    """Decides whether to prune experts that fewer than `config.min_expert_tokens` tokens reached.

    Args:
        weights: Module path of a block to its weights.
        statistics: Calibration of the model.
        config: Its `experts_policy`: `"skip"` leaves these experts out; for the others, `settle` decides which
            statistics to prune their matrices with.

    Returns:
        Weights to prune.

    Raises:
        ValueError: If the policy is `"error"` and there are such experts, or `"skip"` leaves nothing to prune.
    """
    coverage = expert_coverage(statistics, config)
    lacking = set(coverage.lacking)
    if not lacking or not config.needs_statistics:
        return weights
    if config.experts_policy == "error":
        raise ValueError(
            f"Calibration does not reach every expert, and experts_policy='error' forbids that. {coverage}\nCalibrate "
            "on more text, lower min_expert_tokens, or choose another experts_policy."
        )
    logger.warning("Calibration barely reached some experts: experts_policy=%r. %s", config.experts_policy, coverage)
    if config.experts_policy == "skip":
        kept = {block: [w for w in found if w.expert_name not in lacking] for block, found in weights.items()}
        weights = {block: found for block, found in kept.items() if found}
        if not weights:
            raise ValueError(
                "experts_policy='skip' leaves nothing to prune: calibrate on more text, or choose another policy."
            )
    return weights


def kept_experts(
    weights: Sequence[PrunableWeight], entries: Mapping[str, WeightStatistics], config: MWandaConfig
) -> list[PrunableWeight]:
    """The weights of a block that `leave_out_experts` will not leave out.

    Args:
        weights: The weights of the block.
        entries: Name to statistics.
        config: Its `experts_policy` and `min_expert_tokens`.
    """
    lacking = _lacking(weights, entries, config) if config.experts_policy == "skip" else ()
    return [weight for weight in weights if weight.expert_name is None or weight.expert_name not in lacking]


def settle(
    weights: Sequence[PrunableWeight],
    entries: Mapping[str, WeightStatistics],
    grams: Mapping[str, Tensor],
    config: MWandaConfig,
) -> tuple[dict[str, WeightStatistics], dict[str, Tensor]]:
    """Decides with which statistics to prune the matrices of experts that lack tokens.

    With `"shared"`, matrices that read the layer's input get the sums over all experts of the layer. The inner channels
    of an expert are its own, so its other matrices are pruned by magnitude. With `"magnitude"`, all matrices are.

    Args:
        weights: Weights, including all experts of every layer.
        entries: Name to statistics.
        grams: Name to Gram matrix, if there are any.
        config: Its `experts_policy` and `min_expert_tokens`.

    Returns:
        Name to statistics, without matrices to prune by magnitude, and name to Gram matrix, without matrices of experts
        that lack tokens.
    """
    lacking = _lacking(weights, entries, config)
    settled = {}
    for weight in weights:
        if weight.expert_name not in lacking:
            if weight.name in entries:
                settled[weight.name] = entries[weight.name]
        elif config.experts_policy == "shared" and not set(weight.name.split(".")).intersection(INNER):
            place = _place(weight)
            settled[weight.name] = _total([entries[other.name] for other in weights if _place(other) == place])
    known = {weight.name for weight in weights if weight.expert_name not in lacking}
    return settled, {name: gram for name, gram in grams.items() if name in known}


def _place(weight: PrunableWeight) -> tuple[str, str] | None:
    """The experts of one layer and the role in them, which the same matrix of every expert shares."""
    if weight.expert_name is None:
        return None
    return weight.expert_name.rpartition(".")[0], weight.name[len(weight.expert_name) :]


def _lacking(
    weights: Sequence[PrunableWeight], entries: Mapping[str, WeightStatistics], config: MWandaConfig
) -> set[str]:
    """The experts of some weights that fewer than `config.min_expert_tokens` tokens reached."""
    return {
        weight.expert_name
        for weight in weights
        if weight.expert_name is not None
        and weight.name in entries
        and entries[weight.name].tokens.sum() < config.min_expert_tokens
    }


def _total(entries: Sequence[WeightStatistics]) -> WeightStatistics:
    def add(values: list[Tensor]) -> Tensor:
        return torch.stack(values).sum(0)

    return WeightStatistics(
        add([entry.tokens for entry in entries]),
        add([entry.square_sum for entry in entries]),
        {key: add([entry.active[key] for entry in entries]) for key in entries[0].active},
    )
