"""Pruning one model again and again, each time from its dense weights."""

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..calibration.dataset import build_chunks
from ..checkpoint.schema import RECORD_KEY
from ..configuration import MWandaConfig
from ..modeling.editor import PartiallyPrunedError
from ..modeling.weights import PrunableWeight
from ..pruner import MWandaPruner
from ..pruning.scoring import needs_statistics

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class DenseState:
    """Keeps the prunable weights and the record of a model, and puts them back, in any case if its block fails.

    A copy of the prunable weights lies on the CPU: other trials remove other weights, so that no smaller part would do.

    Args:
        model: The model.
        weights: Its prunable weights.
    """

    def __init__(self, model: "PreTrainedModel", weights: Iterable[PrunableWeight]) -> None:
        self._config = model.config
        self._record = {key: value for key, value in vars(model.config).items() if key == RECORD_KEY}
        self._values = [(weight, weight.matrix.to("cpu", copy=True)) for weight in weights]

    def restore(self) -> None:
        """Makes the model what it was."""
        for weight, values in self._values:
            weight.matrix.copy_(values)
        vars(self._config).pop(RECORD_KEY, None)
        vars(self._config).update(self._record)

    def __enter__(self) -> "DenseState":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.restore()


class Pruning:
    """Prunes a dense model with settings that differ in sparsity, allocation strength and language weights.

    One calibration, done here, serves them all, unless the settings look at each block while they prune.

    Args:
        model: The model.
        dataset: Calibration data.
        tokenizer: Its tokenizer.
        config: The settings.
        progress: Whether to show progress bars.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        dataset: Any,
        tokenizer: "PreTrainedTokenizerBase | str | None",
        config: MWandaConfig,
        progress: bool,
    ) -> None:
        self._model, self._dataset, self._tokenizer = model, dataset, tokenizer
        self._config, self._progress = config, progress
        is_blockwise = config.calibration == "sequential" or config.needs_grams
        self._statistics = (
            MWandaPruner(config, progress=progress).calibrate(model, dataset, tokenizer)
            if needs_statistics(config) and not is_blockwise
            else None
        )

    @property
    def tokens(self) -> Mapping[str, int]:
        """Language to calibration tokens."""
        if self._statistics is not None:
            return self._statistics.tokens
        return build_chunks(self._dataset, self._config, self._model, self._tokenizer).tokens

    def __call__(self, config: MWandaConfig) -> None:
        """Prunes the model, which must be dense."""
        pruner = MWandaPruner(config, progress=self._progress, restore_on_failure=False)  # the dense state is kept
        try:
            if self._statistics is None:
                pruner.prune(self._model, self._dataset, self._tokenizer)
            else:
                pruner.apply(self._model, self._statistics)
        except PartiallyPrunedError as error:
            raise error.__cause__ or error from None  # the model is put back: only the reason matters
