"""Changing weights in a way that can be undone."""

import logging
from collections.abc import Callable
from functools import partial
from types import TracebackType

from torch import Tensor

from ..modeling.bits import unpack_bits
from ..modeling.block_source import BlockSource
from ..modeling.weights import PrunableWeight

logger = logging.getLogger(__name__)


class PartiallyPrunedError(RuntimeError):
    """Pruning ended early on a model that could not be restored; the message says which weights are pruned."""


class WeightEditor:
    """Changes weights inside a `with` block, and restores them all if the block fails or is interrupted.

    What this needs is kept on the CPU: for a masked weight, one bit per entry and the removed values. Of a block on
    disk nothing is kept, as its files are not changed.

    Args:
        source: Brings the blocks of the weights into memory.
        reversible: Whether to keep what was removed. Without it a failure raises `PartiallyPrunedError`.
    """

    def __init__(self, source: BlockSource, reversible: bool = True) -> None:
        self._source = source
        self._reversible = reversible
        self._undo: list[tuple[str, Callable[[], None]]] = []
        self._edited: list[PrunableWeight] = []

    def zero(self, weight: PrunableWeight, pruned: Tensor, packed: Tensor) -> None:
        """Sets the marked entries to zero.

        Args:
            weight: The weight to change.
            pruned: Boolean, shape `(out, in)`, True where an entry is removed.
            packed: The same as packed bits, on the CPU.
        """
        if self._must_keep(weight):
            undo = partial(_put_back, weight, packed, weight.matrix[pruned].cpu())
            self._undo.append((weight.block, undo))
        self._edited.append(weight)
        weight.matrix.masked_fill_(pruned, 0)

    def replace(self, weight: PrunableWeight, values: Tensor) -> None:
        """Gives a weight new values; all old ones are kept, so that this can be undone.

        Args:
            weight: The weight to change.
            values: Shape `(out, in)`.
        """
        if self._must_keep(weight):
            self._undo.append((weight.block, partial(_restore, weight, weight.matrix.to("cpu", copy=True))))
        self._edited.append(weight)
        weight.matrix.copy_(values)

    def _must_keep(self, weight: PrunableWeight) -> bool:
        return self._reversible and not self._source.keeps(weight.block)

    def __enter__(self) -> "WeightEditor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or not self._edited:
            return
        if not self._reversible and not all(self._source.keeps(weight.block) for weight in self._edited):
            raise PartiallyPrunedError(
                f"Pruning stopped ({type(error).__name__}: {error}) and nothing was kept to undo it: "
                f"{len(self._edited)} weights are already pruned, the last one, {self._edited[-1].name!r}, perhaps "
                "only in part; the rest is dense. Load the model again."
            ) from error
        for block, undo in reversed(self._undo):
            with self._source.held(block):
                undo()
        self._source.restore()
        logger.warning("Pruning stopped; the model's weights are as they were before.")


def _put_back(weight: PrunableWeight, packed: Tensor, values: Tensor) -> None:
    matrix = weight.matrix
    matrix[unpack_bits(packed, matrix.shape).to(matrix.device)] = values.to(matrix.device)


def _restore(weight: PrunableWeight, values: Tensor) -> None:
    weight.matrix.copy_(values)
