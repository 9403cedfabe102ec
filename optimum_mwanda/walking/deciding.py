"""What is decided on a walk: the sparsity of every block, and how every weight changes."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing

from ..calibration.statistics import CalibrationStatistics, WeightStatistics
from ..configuration import MWandaConfig
from ..modeling.interrupts import check_interrupts
from ..modeling.pages import trim
from ..modeling.weights import PrunableWeight
from ..pruning.experts_policy import settle
from ..pruning.planning import block_importance, share_out
from ..pruning.sparsity_plan import SparsityPlan
from ..registry import ALLOCATIONS
from .together import Decisions
from .walk import Step, Walk


def weighs_blocks(config: MWandaConfig) -> bool:
    """Whether the sparsity of a block depends on how important it is."""
    return ALLOCATIONS[str(config.allocation)].importance is not None


def importance_of(
    weights: Sequence[PrunableWeight],
    entries: Mapping[str, WeightStatistics],
    statistics: CalibrationStatistics | None,
    config: MWandaConfig,
) -> float | None:
    """How important a block is that is in memory; None if calibration did not reach it.

    Args:
        weights: What will be pruned of the block.
        entries: Name of a weight to its statistics, if there are any.
        statistics: Calibration with the languages of the entries; None if the allocation needs none.
        config: The settings.
    """
    settled, _ = settle(weights, entries, {}, config)
    seen = None if statistics is None else dataclasses.replace(statistics, weights=settled)
    return block_importance([weight.gathered() for weight in weights], seen, config)


def make_plan(
    walk: Walk,
    statistics: CalibrationStatistics | None,
    config: MWandaConfig,
    known: Mapping[str, float | None] | None = None,
) -> SparsityPlan:
    """Visits every block to find its importance, if it matters and is not known, then shares the target out.

    Args:
        walk: Goes through the weights; nothing is changed.
        statistics: Calibration with the languages of what is seen; None if the allocation needs none.
        config: The settings.
        known: Block to importance, for all blocks; None if they must be visited.
    """
    importance: dict[str, float | None] = {block: (known or {}).get(block) for block in walk.weights}
    if weighs_blocks(config) and known is None:
        with closing(walk.steps()) as steps:
            for step in steps:
                entries = step.look().entries
                for block in dict.fromkeys(weight.block for weight in step.weights):
                    importance[block] = importance_of(walk.weights[block], entries, statistics, config)
                trim()
                check_interrupts()
    sizes = {block: sum(weight.numel for weight in found) for block, found in walk.weights.items()}
    return share_out(sizes, list(importance.values()), config)


def decide(steps: Iterable[Step], decisions: Decisions, config: MWandaConfig) -> Iterator[PrunableWeight]:
    """Looks at every step, notes how each of its weights changes, and yields the weight.

    Args:
        steps: Steps of a walk that has an editor.
        decisions: Decides about the weights of a step.
        config: The settings.
    """
    block = ""
    for step in steps:
        trim()
        entries, grams = settle(step.weights, *step.look(), config)
        trim()
        for weight, change in decisions.of(step.weights, entries, grams):
            step.write(weight, *change)
            if weight.block != block:
                block = weight.block
                trim()
            check_interrupts()
            yield weight
            del change  # none of it is kept while the next inputs are seen
        del entries, grams
        decisions.check()  # before anything of the step is changed
