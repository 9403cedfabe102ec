"""A walk through a model in memory that sees what each block reads while its predecessors are pruned."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from ..calibration.collector import StatisticsCollector
from ..calibration.gram import GramCollector
from ..calibration.reduction import Reduce
from ..configuration import MWandaConfig
from ..data.chunks import CalibrationChunks
from ..modeling.block_source import BlockSource
from ..modeling.blocks import find_stacks
from ..modeling.inputs import RunningOrder
from ..modeling.weights import PrunableWeight, Weights
from .finished import Finished
from .recording import Passed
from .replay import BlockCalls
from .store import HiddenStates, OnDevice
from .walk import Seen, Step, Walk
from .watching import run_watched

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class BlockByBlock(Walk):
    """Takes one block after the other, and calls it again over all batches to see the inputs of its weights.

    With `calibration="sequential"` a block sees the outputs of its pruned predecessors. With Gram matrices, so do the
    weights inside it: those that read the same input (query, key and value; the output projection; ...) form a step.
    With `"dense"` everything sees the outputs of the unpruned model. Memory is needed for the hidden states of all
    batches, the Gram matrices of one step and, of an offloaded model, two blocks.

    Args:
        model: The model, in inference mode.
        weights: Module path of a block to the weights to visit in it.
        chunks: Calibration data; of several processes, what this one has of it.
        language_weights: Language to its weight, in the order of the chunks.
        config: Settings.
        source: Brings blocks into memory.
        store: Makes a place for the hidden states of a stack.
        reduce: Adds up sums over the processes that share the calibration; None for a single process.
        only_statistics: Kinds of activity to count on a dense walk that sees nothing but statistics; None to see what
            the settings need.
        finished: Blocks that need no visit.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        weights: Weights,
        chunks: CalibrationChunks,
        language_weights: Mapping[str, float],
        config: MWandaConfig,
        source: BlockSource,
        store: Callable[[], HiddenStates] = OnDevice,
        reduce: Reduce | None = None,
        only_statistics: Sequence[str] | None = None,
        finished: Finished | None = None,
    ) -> None:
        super().__init__(weights, source, finished)
        self._is_dense = config.calibration == "dense" or only_statistics is not None
        self._needs_grams = config.needs_grams and only_statistics is None
        self._stacks = find_stacks(model, config.blocks)
        batches = list(chunks.batches(config.batch_size))  # none, if other processes have all of them
        self._languages, self._batches = [language for language, _ in batches], [inputs for _, inputs in batches]
        self._model, self._store = model, store
        own = [config.activity] if config.activity else []
        self._activities = own if only_statistics is None else only_statistics
        self._language_weights = language_weights
        self._reduce = reduce

    def _steps(self) -> Generator[Step, None, None]:
        unfinished = self.unfinished
        passed: list[Passed] = []
        for number, stack in enumerate(self._stacks):
            is_last = not any(unfinished.keys() & later.keys() for later in self._stacks[number + 1 :])
            finished = [name for name in stack if name in self._finished]
            if is_last and not unfinished.keys() & stack.keys():
                self._adopt(finished)
                continue
            if not self._is_dense:
                self._adopt(finished)
                finished = []
            hidden = self._store()
            calls = BlockCalls(self._model, stack, self._batches, self.source, hidden, passed, is_last)
            last = max((position for position, name in enumerate(stack) if name in unfinished), default=0)
            with closing(self.source.one_by_one([*stack][: last + 1 if is_last else None])) as names:
                for name in names:
                    yield from self._steps_in(calls, name, stack[name], unfinished.get(name, ()))
            # The next stack reads what this one gives: in a dense walk, what it gave before it was pruned.
            passed.append(calls.passed)
            self._adopt(finished)

    def _steps_in(
        self, calls: BlockCalls, name: str, block: nn.Module, weights: Sequence[PrunableWeight]
    ) -> Iterator[Step]:
        if not weights:
            calls.advance(name, block)
            return
        ask_first = None if self._reduce is None else self._reduce.processes.from_first
        order = RunningOrder(weights, lambda: next(iter(calls.outputs(name, block))), ask_first)
        groups = order.groups()
        if self._is_dense:
            # Looking also moves on to the next block, before this one is pruned.
            yield self._step(groups, lambda: calls.advancing(name, block))
            return
        for step in [[group] for group in groups] if self._needs_grams else [groups]:
            last = order.last_module([weight for group in step for weight in group])
            yield self._step(step, partial(calls.run_to, name, block, last))
        calls.advance(name, block)

    def _step(self, groups: Sequence[list[PrunableWeight]], run: Callable[[], Generator[int, None, None]]) -> Step:
        weights = [weight for group in groups for weight in group]

        def look() -> Seen:
            languages = list(self._language_weights)
            statistics = StatisticsCollector(weights, languages, self._activities, self._reduce)
            looked_into = groups if self._needs_grams else ()
            grams = GramCollector(looked_into, self._language_weights, self._reduce)
            run_watched(run(), self._languages, statistics, grams)
            return Seen(statistics.finish(), grams.finish())

        return Step(weights, look)
