"""Changing weights in a way that can be undone."""

import logging
from collections.abc import Callable
from functools import partial
from itertools import groupby
from types import TracebackType

from torch import Tensor

from ..modeling.bits import marked, pack_bits, unpack_bits, zero_marked
from ..modeling.block_source import BlockSource
from ..modeling.host_memory import to_host
from ..modeling.sharding import is_sharded
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
        self._undo: list[tuple[PrunableWeight, Callable[[Tensor], None]]] = []
        self._edited: dict[PrunableWeight, bool] = {}  # in their order; whether all old values are kept

    def zero(self, weight: PrunableWeight, pruned: Tensor, packed: Tensor) -> None:
        """Sets the marked entries to zero.

        Args:
            weight: The weight to change.
            pruned: Boolean, shape `(out, in)`, True where an entry is removed.
            packed: The same as packed bits, on the CPU.
        """
        matrix, pruned = weight.own, weight.own_of(pruned)
        if self._must_keep(weight):
            own = to_host(pack_bits(pruned)) if is_sharded(weight.holder) else packed
            self._undo.append((weight, partial(_put_back, own, to_host(marked(matrix, pruned)))))
        self._edited.setdefault(weight, False)
        zero_marked(matrix, pruned)

    def replace(self, weight: PrunableWeight, values: Tensor) -> None:
        """Gives a weight new values; all old ones are kept, so that this can be undone.

        Args:
            weight: The weight to change.
            values: Shape `(out, in)`.
        """
        matrix, values = weight.own, weight.own_of(values)
        if self._must_keep(weight) and not self._edited.get(weight, False):
            self._undo.append((weight, partial(_restore, to_host(matrix, copy=True))))
        self._edited[weight] = True
        matrix.copy_(values)

    def undo(self) -> None:
        """Gives all weights the values that they had when the block was entered."""
        for block, edits in groupby(reversed(self._undo), key=lambda edit: edit[0].block):
            with self._source.held(block):
                for weight, undo in edits:
                    undo(weight.own)
        self._undo.clear()
        self._edited.clear()

    def _must_keep(self, weight: PrunableWeight) -> bool:
        return self._reversible and not self._source.keeps(weight.block)

    def __enter__(self) -> "WeightEditor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        if not self._reversible and not all(self._source.keeps(weight.block) for weight in self._edited):
            raise PartiallyPrunedError(
                f"Pruning stopped ({type(error).__name__}: {error}) and nothing was kept to undo it: "
                f"{len(self._edited)} weights are already pruned, the last one, {[*self._edited][-1].name!r}, perhaps "
                "only in part; the rest is dense. Load the model again."
            ) from error
        is_edited = bool(self._edited)
        try:
            self.undo()
        finally:
            self._source.restore()
        if is_edited:
            logger.warning("Pruning stopped; the model's weights are as they were before.")


def _put_back(packed: Tensor, values: Tensor, matrix: Tensor) -> None:
    matrix[unpack_bits(packed, matrix.shape).to(matrix.device)] = values.to(matrix.device)


def _restore(values: Tensor, matrix: Tensor) -> None:
    matrix.copy_(values)
