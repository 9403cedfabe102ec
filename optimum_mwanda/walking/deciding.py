"""What is decided on a walk: the sparsity of every block, and how every weight changes."""

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import closing

from ..calibration.statistics import CalibrationStatistics
from ..configuration import MWandaConfig
from ..modeling.interrupts import check_interrupts
from ..modeling.weights import PrunableWeight
from ..pruning.allocation import SparsityPlan
from ..pruning.experts_policy import settle
from ..pruning.planning import block_importance, share_out
from ..registry import ALLOCATIONS
from ..storage.pages import trim
from .together import Decisions
from .walk import Step, Walk


def make_plan(walk: Walk, statistics: CalibrationStatistics | None, config: MWandaConfig) -> SparsityPlan:
    """Visits every block to find its importance, if it matters, then shares the target out.

    Args:
        walk: Goes through the weights; nothing is changed.
        statistics: Calibration with the languages of what is seen; None if the allocation needs none.
        config: The settings.
    """
    importance: dict[str, float | None] = dict.fromkeys(walk.weights)
    if ALLOCATIONS[str(config.allocation)].importance is not None:
        with closing(walk.steps()) as steps:
            for step in steps:
                entries, _ = settle(step.weights, *step.look(), config)
                seen = None if statistics is None else dataclasses.replace(statistics, weights=entries)
                for block in dict.fromkeys(weight.block for weight in step.weights):
                    readable = [weight.gathered() for weight in walk.weights[block]]
                    importance[block] = block_importance(readable, seen, config)
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
        entries, grams = settle(step.weights, *step.look(), config)
        for weight, change in decisions.of(step.weights, entries, grams):
            step.write(weight, *change)
            if weight.block != block:
                block = weight.block
                trim()
            check_interrupts()
            yield weight
