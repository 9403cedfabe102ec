"""The way through a model, in steps of weights that are looked at and edited together."""

import abc
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from typing import NamedTuple

from torch import Tensor

from ..calibration.statistics import CalibrationStatistics, WeightStatistics
from ..modeling.bits import pack_bits, unpack_bits
from ..modeling.block_source import BlockSource
from ..modeling.counting import count_zeros
from ..modeling.host_memory import to_host
from ..modeling.interrupts import check_interrupts
from ..modeling.pages import freed_at_once
from ..modeling.weights import PrunableWeight, Weights, flat
from ..pruning.tuning import Outcome
from .editor import WeightEditor
from .finished import Finished


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
            pruned = unpack_bits(self.packed.to(self.weight.device), self.weight.shape)
            editor.zero(self.weight, pruned, self.packed)
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
        packed = to_host(pack_bits(pruned)) if values is None else None
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
        return {name: count_zeros(weight.holder) for name, weight in holders.items()}


class Walk(abc.ABC):
    """A way through the weights of a model.

    Args:
        weights: Module path of a block to the weights in it.
        source: Brings blocks into memory.
        finished: Blocks that need no visit; None: all blocks are visited.

    Attributes:
        weights: The same.
        source: The same.
        zeros: Name of the tensor that holds an edited weight, `PrunableWeight.stored`, to the number of zeros in it;
            filled as the walk leaves each step.
        trained: Module path of a block to what training it has brought, if blocks are trained; filled likewise.
    """

    def __init__(self, weights: Weights, source: BlockSource, finished: Finished | None = None) -> None:
        self.weights = weights
        self.source = source
        self.zeros: dict[str, int] = {}
        self.trained: dict[str, Outcome] = {}
        self._finished = finished or Finished()

    @property
    def unfinished(self) -> Weights:
        """Module path of a block to the weights to visit in it."""
        return {name: weights for name, weights in self.weights.items() if name not in self._finished}

    def _adopt(self, finished: Iterable[str]) -> None:
        """Brings finished blocks to their final state."""
        for name in finished:
            zeros, outcome = self._finished.adopt(name)
            self.zeros |= zeros
            if outcome is not None:
                self.trained[name] = outcome

    def steps(self, editor: WeightEditor | None = None) -> Generator[Step, None, None]:
        """Yields one step after the other; the changes of a step are committed when the next step is asked for.

        Args:
            editor: Changes the weights; None to only look at them.
        """
        if editor is not None:
            self._finished.keep_changes(self.weights, self.zeros, self.trained)
        memory = nullcontext() if self.source.is_resident else freed_at_once()
        with memory, closing(self._steps()) as steps:
            for step in steps:
                yield step
                if editor is not None:
                    self.zeros |= step.commit(editor)
        if editor is not None:
            self._finished.gather(self.weights)

    @abc.abstractmethod
    def _steps(self) -> Generator[Step, None, None]:
        """Yields the steps; code after a `yield` runs when the edits of that step have been committed."""


class Known(Walk):
    """Weights with statistics that are already known: all in one step, or a step per block if blocks are offloaded.

    Args:
        weights: Module path of a block to its weights.
        statistics: Statistics of their inputs; None if there are none.
        source: Brings blocks into memory.
        finished: Blocks that need no visit.
    """

    def __init__(
        self,
        weights: Weights,
        statistics: CalibrationStatistics | None,
        source: BlockSource,
        finished: Finished | None = None,
    ) -> None:
        super().__init__(weights, source, finished)
        self._seen = Seen({} if statistics is None else statistics.weights, {})

    def _steps(self) -> Generator[Step, None, None]:
        if self.source.is_resident:
            yield Step(flat(self.weights), lambda: self._seen)
            return
        unfinished = self.unfinished
        self._adopt(name for name in self.weights if name not in unfinished)
        with closing(self.source.one_by_one(unfinished)) as names:
            for name in names:
                yield Step(self.weights[name], lambda: self._seen)
