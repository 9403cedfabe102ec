"""Pruning a model on a walk, once it is known how much and by what, and writing down what was done."""

from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from .calibration.statistics import CalibrationStatistics
from .configuration import MWandaConfig
from .modeling.blocks import inference_mode
from .modeling.interrupts import check_interrupts
from .modeling.quantized import forget_dequantization
from .modeling.weights import flat
from .processes.group import current
from .pruning.scoring import weigh_languages
from .pruning.sensitivity import find_sensitivities
from .pruning.sparsity_plan import SparsityPlan
from .record.attachment import attach_record
from .record.build import build_record, warn_of_more_zeros
from .utils import progress_bar
from .walking.deciding import decide
from .walking.editor import WeightEditor
from .walking.together import Decisions
from .walking.walk import Walk

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Run(NamedTuple):
    """What is known before the first weight is pruned.

    Attributes:
        statistics: Of the calibration, if there was one.
        fingerprint: Of the dense model.
        factors: Name of a weight to how its rows are coupled, if the settings ask for it.
        chosen: What was found by trying before the pruning to how, for the record.
    """

    statistics: CalibrationStatistics | None
    fingerprint: str
    factors: Mapping[str, "Tensor"]
    chosen: Mapping[str, str]


def execute(
    model: "PreTrainedModel",
    walk: Walk,
    plan: SparsityPlan,
    run: Run,
    config: MWandaConfig,
    progress: bool,
    restore_on_failure: bool,
) -> "PreTrainedModel":
    """Prunes on a walk; if it ends early, the editor undoes the changes and there is no record.

    Args:
        model: The dense model.
        walk: Goes through its weights.
        plan: The sparsity of each of them.
        run: What is known of them.
        config: The settings, of which none is left open.
        progress: Whether to show a progress bar.
        restore_on_failure: Whether the changes can be undone.
    """
    weighted = None
    if run.statistics is not None and config.needs_statistics:
        weighted = weigh_languages(config, run.statistics.tokens)
    total = len(flat(walk.unfinished))
    sensitivities = find_sensitivities(run.statistics, run.factors, config)
    decisions = Decisions(plan, weighted, config, current(), sensitivities)
    is_shown = progress and current().is_first
    with inference_mode(model), WeightEditor(walk.source, restore_on_failure) as editor:
        with closing(walk.steps(editor)) as steps:
            visited = decide(steps, decisions, config)
            for _ in progress_bar(visited, total=total, description="Pruning", show=is_shown):
                pass
        found = (walk.weights, walk.zeros, plan, run.statistics, run.fingerprint, walk.trained, run.chosen)
        record = build_record(model, config, *found)
        check_interrupts()
        forget_dequantization(model)
        attach_record(model, record)
    walk.source.settle()
    warn_of_more_zeros(record, flat(walk.weights))
    return model
