"""The way through a model, in steps of weights that are looked at and edited together."""

import abc
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from ..calibration.statistics import CalibrationStatistics, WeightStatistics
from ..modeling.bits import pack_bits, unpack_bits
from ..modeling.counting import count_zeros
from ..modeling.interrupts import check_interrupts
from ..modeling.sharding import whole
from ..modeling.weights import PrunableWeight, Weights, flat
from .editor import WeightEditor


class Seen(NamedTuple):
    """Inputs of the weights of a step, summed over all calibration batches.

    Attributes:
        entries: Name of a weight to its statistics.
        grams: Name of a weight to the pooled Gram matrix of its input, shape `(in, in)`; empty if none are needed.
    """

    entries: Mapping[str, WeightStatistics]
    grams: Mapping[str, Tensor]


class _Edit(NamedTuple):
    """A change to one weight: new values, or the packed mask of the entries to set to zero."""

    weight: PrunableWeight
    packed: Tensor | None
    values: Tensor | None

    def commit(self, editor: WeightEditor) -> None:
        if self.packed is not None:
            device, shape = self.weight.matrix.device, self.weight.matrix.shape
            editor.zero(self.weight, unpack_bits(self.packed.to(device), shape))
        elif self.values is not None:
            editor.replace(self.weight, self.values)


class Step:
    """Weights that are in memory together.

    Args:
        weights: The weights.
        look: Runs whatever is needed to see their inputs; call it once, before anything is written.
    """

    def __init__(self, weights: Sequence[PrunableWeight], look: Callable[[], Seen]) -> None:
        self.weights = weights
        self.look = look
        self._edits: deque[_Edit] = deque()

    def write(self, weight: PrunableWeight, pruned: Tensor, values: Tensor | None) -> None:
        """Notes a change to a weight; the model changes when the walk leaves the step.

        Args:
            weight: One of the weights.
            pruned: Boolean mask, shape `(out, in)`, True where pruned.
            values: New values of the same shape, zero where pruned; None if the remaining entries keep their values.
        """
        packed = pack_bits(pruned).cpu() if values is None else None
        self._edits.append(_Edit(weight, packed, values))

    def commit(self, editor: WeightEditor) -> dict[str, int]:
        """Makes the edits.

        Returns:
            Name of the tensor that holds an edited weight, `PrunableWeight.stored`, to the number of zeros in it.
        """
        holders = {edit.weight.stored: edit.weight for edit in self._edits}
        while self._edits:
            self._edits.popleft().commit(editor)
            check_interrupts()
        return {name: count_zeros(whole(weight.holder)) for name, weight in holders.items()}


class Walk(abc.ABC):
    """A way through the weights of a model.

    Args:
        weights: Module path of a block to the weights to visit in it.

    Attributes:
        weights: The same.
        zeros: Name of the tensor that holds an edited weight, `PrunableWeight.stored`, to the number of zeros in it;
            filled as the walk leaves each step.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.zeros: dict[str, int] = {}

    def steps(self, editor: WeightEditor | None = None) -> Iterator[Step]:
        """Yields one step after the other; the changes of a step are committed when the next step is asked for.

        Args:
            editor: Changes the weights; None to only look at them.
        """
        for step in self._steps():
            yield step
            if editor is not None:
                self.zeros |= step.commit(editor)

    @abc.abstractmethod
    def _steps(self) -> Iterator[Step]:
        """Yields the steps; code after a `yield` runs when the edits of that step have been committed."""


class AllAtOnce(Walk):
    """A single step that holds every weight, with statistics that are already known.

    Args:
        weights: Module path of a block to its weights.
        statistics: Statistics of their inputs; None if there are none.
    """

    def __init__(self, weights: Weights, statistics: CalibrationStatistics | None) -> None:
        super().__init__(weights)
        self._seen = Seen({} if statistics is None else statistics.weights, {})

    def _steps(self) -> Iterator[Step]:
        yield Step(flat(self.weights), lambda: self._seen)


def check_resident(weights: Sequence[PrunableWeight]) -> None:
    """Checks that the values of all weights are in memory, as the walks in this package require.

    Raises:
        ValueError: If some are offloaded.
    """
    for weight in weights:
        if weight.holder.device.type == "meta":
            raise ValueError(
                f"{weight.name!r} is offloaded (meta device): load the whole model into memory to prune it, "
                "for example with device_map='cpu'."
            )
