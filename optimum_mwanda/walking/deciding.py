"""What is decided on a walk: the sparsity of every block, and how every weight changes."""

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import closing

from torch import Tensor

from ..calibration.statistics import CalibrationStatistics
from ..configuration import MWandaConfig
from ..modeling.interrupts import check_interrupts
from ..modeling.weights import PrunableWeight
from ..pruning.allocation import SparsityPlan
from ..pruning.experts_policy import settle
from ..pruning.planning import block_importance, share_out
from ..pruning.update import mask_and_values
from .walk import Step, Walk


def make_plan(walk: Walk, statistics: CalibrationStatistics | None, config: MWandaConfig) -> SparsityPlan:
    """Visits every block to find its importance, then shares the target out.

    Args:
        walk: Goes through the weights; nothing is changed.
        statistics: Calibration with the languages of what is seen; None if the allocation needs none.
        config: The settings.
    """
    importance: dict[str, float | None] = dict.fromkeys(walk.weights)
    with closing(walk.steps()) as steps:
        for step in steps:
            entries, _ = settle(step.weights, *step.look(), config)
            seen = None if statistics is None else dataclasses.replace(statistics, weights=entries)
            for block in dict.fromkeys(weight.block for weight in step.weights):
                importance[block] = block_importance(walk.weights[block], seen, config)
    sizes = {block: sum(weight.numel for weight in found) for block, found in walk.weights.items()}
    return share_out(sizes, list(importance.values()), config)


def decide(
    steps: Iterable[Step], plan: SparsityPlan, language_weights: Tensor | None, config: MWandaConfig
) -> Iterator[PrunableWeight]:
    """Looks at every step, notes how each of its weights changes, and yields the weight.

    Args:
        steps: Steps of a walk that has an editor.
        plan: Sparsity per block.
        language_weights: Weight of every language; None without statistics.
        config: The settings.
    """
    for step in steps:
        entries, grams = settle(step.weights, *step.look(), config)
        for weight in step.weights:
            entry, gram, sparsity = entries.get(weight.name), grams.get(weight.name), plan[weight.block]
            step.write(weight, *mask_and_values(weight, entry, gram, language_weights, sparsity, config))
            check_interrupts()
            yield weight
