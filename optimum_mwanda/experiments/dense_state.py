"""The dense weights of a model that is pruned repeatedly."""

from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING

from ..modeling.host_memory import to_host
from ..modeling.weights import PrunableWeight
from ..record.attachment import put_records, take_records

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
        self._records = take_records(model)
        self._weights = list(weights)
        self._dense = {weight.name: to_host(weight.own, copy=True) for weight in self._weights}

    def restore_weight(self, weight: PrunableWeight) -> None:
        """Gives one of the weights its dense values."""
        weight.own.copy_(self._dense[weight.name])

    def restore(self) -> None:
        """Makes the model as it was."""
        for weight in self._weights:
            self.restore_weight(weight)
        put_records(self._records)

    def __enter__(self) -> "DenseState":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.restore()
