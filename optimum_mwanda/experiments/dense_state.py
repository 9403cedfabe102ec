"""The dense weights of a model that is pruned repeatedly."""

from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING

from ..modeling.weights import PrunableWeight
from ..record.schema import RECORD_KEY

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DenseState:
    """Keeps the prunable weights and the record of a model, and restores them on request or if its block fails.

    All prunable weights are copied to the CPU, not only the pruned ones, because each trial removes other weights.

    Args:
        model: The model.
        weights: Its prunable weights.
    """

    def __init__(self, model: "PreTrainedModel", weights: Iterable[PrunableWeight]) -> None:
        self._config = model.config
        self._record = {key: value for key, value in vars(model.config).items() if key == RECORD_KEY}
        self._values = [(weight, weight.matrix.to("cpu", copy=True)) for weight in weights]

    def restore(self) -> None:
        """Makes the model as it was."""
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
