"""From settings and statistics to the sparsity of every block."""

from collections.abc import Callable, Mapping, Sequence

from ..calibration.statistics import CalibrationStatistics
from ..configuration import MWandaConfig
from ..modeling.weights import PrunableWeight, Weights, only_experts
from ..registry import ALLOCATIONS
from .scoring import weigh_languages
from .sparsity_plan import BlockPlan, SparsityPlan


def to_calibrate(weights: Weights, config: MWandaConfig, is_planned: bool = False) -> Weights:
    """The weights of which statistics of the dense model are needed before anything is pruned.

    Args:
        weights: Module path of a block to its weights.
        config: The settings.
        is_planned: Whether it is known already how sparse everything becomes.
    """
    if not config.needs_statistics:
        return {}
    if config.calibration_tolerance is not None:
        return weights  # the dense model says how much text is read
    if config.works_blockwise and (is_planned or not ALLOCATIONS[str(config.allocation)].needs_data):
        # The walk looks at each block itself; from the dense model, only the experts policy needs statistics.
        return only_experts(weights)
    return weights


def block_importance(
    weights: Sequence[PrunableWeight], statistics: CalibrationStatistics | None, config: MWandaConfig
) -> float | None:
    """How important one block is; this is all that an allocation needs to know about its weights.

    Args:
        weights: The weights of the block.
        statistics: Calibration of at least these weights; None if the allocation needs none.
        config: The settings.

    Returns:
        Higher for a block that should keep more; None for the uniform allocation, and if calibration did not reach the
        block.

    Raises:
        FloatingPointError: If weights are NaN or infinite.
        ValueError: If an allocation that compares languages has fewer than two, or a weight has no usable spectrum.
    """
    allocation = ALLOCATIONS[str(config.allocation)]
    if allocation.importance is None:
        return None
    measure: Callable[..., float | None] = allocation.importance
    if not allocation.needs_data or statistics is None:
        return measure(weights, None, None, config)
    if allocation.compares_languages and len(statistics.languages) < 2:
        raise ValueError(
            f"allocation={config.allocation!r} compares languages, but there is only "
            f"{', '.join(map(repr, statistics.languages))}: calibrate on two or more, or choose 'owl' or 'uniform'."
        )
    language_weights = weigh_languages(config, statistics.tokens)
    known = [weight for weight in weights if weight.name in statistics.weights]
    return measure(known, statistics, language_weights, config) if known else None


def share_out(sizes: Mapping[str, int], importance: Sequence[float | None], config: MWandaConfig) -> SparsityPlan:
    """Shares the target sparsity out among the blocks.

    Args:
        sizes: Module path of a block to the number of its prunable weights.
        importance: Result of `block_importance` for each; a block without one counts as average.
        config: The settings.
    """
    target, rule = config.target_sparsity, str(config.allocation)
    sparsities = [target] * len(sizes)
    known = [value for value in importance if value is not None]
    if known:
        bounds = (config.min_block_sparsity, config.max_block_sparsity)
        middle = sum(known) / len(known)
        measured = [middle if value is None else value for value in importance]
        spread = ALLOCATIONS[rule].spread
        sparsities = spread(measured, list(sizes.values()), target, config.allocation_strength, bounds)
    blocks = map(BlockPlan, sizes, sizes.values(), importance, sparsities)
    return SparsityPlan(target, rule, tuple(blocks))
