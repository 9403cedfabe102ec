"""Checks that statistics, plans and settings fit a model, before they are used."""

import logging
from typing import Any

from torch import nn

from ..calibration.statistics import CalibrationStatistics
from ..configuration import MWandaConfig
from ..modeling.block_source import BlockSource
from ..modeling.blocks import find_blocks
from ..modeling.compiled import check_not_compiled
from ..modeling.likelihood import check_measurable
from ..modeling.quantized import check_dense
from ..modeling.sharding import check_sharing, check_unshared, shares_parameters
from ..modeling.weights import Weights, find_weights, flat
from ..processes.group import current
from ..values import is_close
from .sparsity_plan import SparsityPlan

logger = logging.getLogger(__name__)


def check_model(model: Any, config: MWandaConfig) -> None:
    """Checks that something is a model whose matrices can be pruned.

    Raises:
        TypeError: If it is no loaded model.
        ValueError: If it carries an adapter, is compiled, quantized, or shared out among processes in a way that the
            settings do not allow; or if several processes share the work, and the settings are for one.
    """
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise TypeError(f"model is a {type(model).__name__}: pass a loaded transformers model.")
    if hasattr(model, "peft_config"):
        raise ValueError(
            "The model carries an adapter, and its matrices must not be pruned: merge it (merge_and_unload, or "
            "merge_preserving_masks if the model is pruned already), or unload it first."
        )
    check_not_compiled(model)
    check_dense(model)
    check_sharing(model, config.works_blockwise)
    if config.trains_blocks and current().size > 1:
        raise ValueError(
            f"refinement={config.refinement!r} with reconstruction={config.reconstruction!r} trains blocks in one "
            f"process, and {current().size} share this work: start one, or give refinement='swap' or "
            "reconstruction='obs', which they share."
        )


def check_differentiable(model: Any, weights: Weights, config: MWandaConfig) -> None:
    """Checks that a backward pass can go through a model and show the outputs of all weights, if settings need one.

    Raises:
        ValueError: If it cannot.
    """
    if config.sensitivity == "none":
        return
    what = f"sensitivity={config.sensitivity!r} runs a backward pass through the dense model"
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            f"{what}, which must be in memory, but parts of it are offloaded: load it whole, or give "
            "sensitivity='none'."
        )
    check_unshared(model, f"{what}, which processes share out: load it whole in each, or give sensitivity='none'.")
    if fused := next((weight for weight in flat(weights) if weight.expert is not None), None):
        raise ValueError(
            f"{what}, which cannot show the outputs of fused experts such as {fused.name!r}: leave them out with "
            f"exclude=['{fused.stored.rpartition('.')[0]}.*', ...], or give sensitivity='none'."
        )
    try:
        check_measurable(model)
    except ValueError as error:
        raise ValueError(f"{what}, which needs the likelihood of text. {error}") from error


def open_model(model: Any, config: MWandaConfig, plan: SparsityPlan | None = None) -> tuple[Weights, BlockSource]:
    """The weights of a model to prune, and what brings them into memory, once it is known that the settings fit.

    Args:
        model: The model.
        config: The settings.
        plan: The sparsity of every block, if it is known already.

    Raises:
        TypeError: As `check_model`.
        ValueError: As `check_model`, `check_pattern` and `check_plan`.
    """
    check_model(model, config)
    blocks = find_blocks(model, config.blocks)
    weights = find_weights(blocks, config.include, config.exclude)
    check_pattern(weights, config)
    if plan is not None:
        check_plan(plan, weights, config)
    return weights, BlockSource(blocks)


def check_held_whole(model: nn.Module, source: BlockSource, what: str) -> None:
    """Checks that one process holds a model that is to be tried with several settings.

    Args:
        model: The model.
        source: Its blocks.
        what: What is found by trying, with its verb, to begin the message.

    Raises:
        ValueError: If blocks are offloaded, or several processes share the model or the work.
    """
    if shares_parameters(model) or current().size > 1 or not source.is_resident:
        raise ValueError(
            f"{what} by trying, for which the whole model must be in the memory of one process: do this on a machine "
            "that holds it, and give what was found there as settings."
        )


def check_settling(model: Any, source: BlockSource, config: MWandaConfig) -> None:
    """Checks that reading can end once the ranking of channels has settled, if the settings ask for it.

    Args:
        model: The model.
        source: Its blocks.
        config: The settings.

    Raises:
        ValueError: If blocks are offloaded, several processes share the model or the work, or the text is pairs.
    """
    if config.calibration_tolerance is None:
        return
    if shares_parameters(model) or current().size > 1 or not source.is_resident:
        reason = "needs the whole model in the memory of one process, where all matrices see a chunk before the next"
    elif model.config.is_encoder_decoder:
        reason = "needs chunks of one length, and an encoder-decoder reads its pairs in the order of their lengths"
    else:
        return
    raise ValueError(
        f"calibration_tolerance={config.calibration_tolerance!r} {reason}: leave it out, and choose with "
        "samples_per_language how much is read."
    )


def check_pattern(weights: Weights, config: MWandaConfig) -> None:
    """Checks that an N:M pattern divides every matrix.

    Raises:
        ValueError: If it does not.
    """
    if config.kept_of is None:
        return
    run = config.kept_of[1]
    for weight in flat(weights):
        if weight.in_features % run:
            raise ValueError(
                f"pattern={config.pattern!r} does not divide the {weight.in_features} inputs of {weight.name!r}: leave "
                "this weight out with exclude, or choose another pattern."
            )


def check_statistics(
    statistics: CalibrationStatistics | None, fingerprint: str, weights: Weights, config: MWandaConfig
) -> CalibrationStatistics | None:
    """Checks that statistics fit a model and the settings, and warns if they were taken on other weights.

    Args:
        statistics: The statistics, if there are any.
        fingerprint: `model_fingerprint` of the model.
        weights: Its prunable weights.
        config: The settings.

    Returns:
        The statistics of the languages that the settings ask for.

    Raises:
        ValueError: If statistics are needed but missing, lack a matrix, a language or a kind of activity, or a matrix
            has another width.
    """
    if statistics is None:
        if config.needs_statistics:
            raise ValueError(
                f"criterion={config.criterion!r} with allocation={config.allocation!r} needs statistics: pass the "
                "result of calibrate()."
            )
        return None
    for weight in flat(weights):
        entry = statistics.weights.get(weight.name)
        if entry is None or entry.square_sum.shape[1] != weight.in_features:
            raise ValueError(
                f"The statistics hold nothing that fits {weight.name!r} with {weight.in_features} inputs: they were "
                f"taken on another model ({statistics.model or 'unnamed'}) or on other weights. Calibrate this model."
            )
    if statistics.model_fingerprint not in ("", fingerprint):
        logger.warning(
            "The statistics were taken on %s with other values or another dtype than this model has now. This is fine "
            "only if it is the same model in another dtype, or if you prune it again on purpose.",
            statistics.model or "a model",
        )
    if config.activity is not None and config.activity not in statistics.activities:
        raise ValueError(
            f"activation={config.activation!r} needs the activity {config.activity!r}, but the statistics count: "
            f"{', '.join(statistics.activities) or 'none'}. Calibrate with this config, or with also_for=[config]."
        )
    known = {name: sums.shape[1] for name, sums in statistics.row_sensitivities.items()}
    if config.needs_row_statistics and any(known.get(w.name) != w.out_features for w in flat(weights)):
        raise ValueError(
            f"sensitivity={config.sensitivity!r} needs the sensitivities of all rows, but the statistics lack them: "
            "calibrate with this config, or with also_for=[config]."
        )
    return statistics.select(config.languages) if config.languages is not None else statistics


def check_plan(plan: SparsityPlan, weights: Weights, config: MWandaConfig) -> None:
    """Checks that a plan names every block of a model, and no matrix that is not pruned, and agrees with the pattern.

    Raises:
        ValueError: If it does not.
    """
    if not is_close(plan.target, config.target_sparsity):
        logger.warning(
            "The plan was made for a sparsity of %g, and not for sparsity=%g: the plan counts.",
            plan.target,
            config.target_sparsity,
        )
    missing = set(weights) - {block.name for block in plan.blocks}
    if missing:
        raise ValueError(f"The plan has no sparsity for {min(missing)!r}: it was made for another model.")
    known = {weight.name for weight in flat(weights)}
    unknown = {name for block in plan.blocks if block.name in weights for name in block.weights} - known
    if unknown:
        raise ValueError(
            f"The plan has a sparsity for {min(unknown)!r}, which is not pruned: it was made for another model, or "
            "with other settings of include and exclude."
        )
    if config.kept_of is not None and any(plan.of(weight) != config.target_sparsity for weight in flat(weights)):
        raise ValueError(
            f"The plan gives blocks another sparsity than pattern={config.pattern!r}, which fixes it at "
            f"{config.target_sparsity:g}: leave out the plan, or use pattern='unstructured'."
        )
