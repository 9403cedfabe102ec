"""What the settings leave to be found by trying, before a model is pruned."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from ..configuration import MWandaConfig
from ..data.chunks import CalibrationText
from ..modeling.block_source import BlockSource
from ..modeling.weights import Weights
from ..pruning.sparsity_plan import SparsityPlan
from ..walking.store import HiddenStates
from .regularisation import tune_on
from .worst_language import weigh_on

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Chosen(NamedTuple):
    """Settings with nothing left to find.

    Attributes:
        config: The settings.
        how: What was found to how, for the record.
    """

    config: MWandaConfig
    how: Mapping[str, str]


def choose(
    model: "PreTrainedModel",
    weights: Weights,
    text: CalibrationText,
    config: MWandaConfig,
    source: BlockSource,
    plan: SparsityPlan | None,
    store: Callable[[], HiddenStates],
    progress: bool,
) -> Chosen:
    """Finds what the settings leave open; the model ends as it was, also after a failure.

    Args:
        model: The dense model.
        weights: Module path of a block to its weights.
        text: Calibration data; read if there is something to find.
        config: The settings.
        source: The blocks.
        plan: The sparsity of every block, if it is known already.
        store: Makes a place for hidden states.
        progress: Whether to show progress bars.

    Raises:
        FloatingPointError: If weights or activations are NaN or infinite.
        ValueError: If text, model and settings do not allow it.
    """
    how = {}
    if config.finds_regularisation:
        tuned = tune_on(model, weights, text.whole(), config, source, plan, store, progress)
        config = config.replace(**tuned.settings, tune_regularisation=False)
        how["regularisation"] = tuned.note
    if config.finds_weights:
        found = weigh_on(model, weights, text.whole(), config, source, plan, store, progress)
        config = config.replace(language_weights=found.weights)
        how["language_weights"] = found.note
    return Chosen(config, how)
