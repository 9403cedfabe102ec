"""A walk through a model that sees what each block reads while its predecessors are pruned."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..calibration.collector import StatisticsCollector
from ..calibration.gram import GramCollector
from ..calibration.reduction import Reduce, deal, readers
from ..configuration import MWandaConfig
from ..data.chunks import CalibrationChunks
from ..data.hold_back import hold_back
from ..data.packing import Batch
from ..modeling.block_source import BlockSource
from ..modeling.blocks import find_stacks
from ..modeling.inputs import RunningOrder
from ..modeling.weights import PrunableWeight, Weights
from ..pruning.scoring import weigh_languages
from .block_training import BlockTrainer, DenseStream, Piece
from .finished import Finished
from .recording import Passed
from .regions import find_regions, groups_of
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
    batches, the Gram matrices of one step and, of an offloaded model, two blocks, or as many as are trained together.

    If blocks are trained, the hidden states of the dense model go along, and behind the steps of each block, or of all
    that are trained together, comes one that decides nothing, but trains what the others have left.

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
        outputs: A block that is trained, or a part of it, to the Fisher information of its outputs, if errors are
            weighed by it.
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
        outputs: Mapping[nn.Module, Tensor] | None = None,
    ) -> None:
        super().__init__(weights, source, finished)
        self._is_dense = config.calibration == "dense" or only_statistics is not None
        self._needs_grams = config.needs_grams and only_statistics is None
        self._stacks = find_stacks(model, config.blocks)
        trains = config.trains_blocks and only_statistics is None
        pieces = list(_pieces(chunks, config, trains))  # none, if other processes have all of them
        self._pieces, self._batches = [piece for piece, _ in pieces], [inputs for _, inputs in pieces]
        self._trainer = BlockTrainer(self._pieces, language_weights, config) if trains else None
        self._model, self._store = model, store
        self._region, self._trains_masks = config.reconstruction_region, config.trains_masks
        self._together = config.reconstruction_blocks if trains else 1
        self._outputs = outputs
        own = [config.activity] if config.activity else []
        self._activities = own if only_statistics is None else only_statistics
        self._language_weights = language_weights
        self._reduce = reduce

    @property
    def unfinished(self) -> Weights:
        """Module path of a block to the weights to visit in it."""
        found = super().unfinished
        if self._trainer is None or not found:
            return found
        # Where the dense model goes along, no finished block comes after one that is not.
        names, first = [*self.weights], next(iter(found))
        together = next(group for stack in self._stacks for group in groups_of(stack, self._together) if first in group)
        start = min(names.index(name) for name in together if name in self.weights)
        return {name: self.weights[name] for name in names[start:]}

    def _steps(self) -> Generator[Step, None, None]:
        unfinished = self.unfinished
        passed: list[Passed] = []
        passed_dense: list[Passed] = []
        for number, stack in enumerate(self._stacks):
            is_last = not any(unfinished.keys() & later.keys() for later in self._stacks[number + 1 :])
            finished = [name for name in stack if name in self.weights and name not in unfinished]
            if is_last and not unfinished.keys() & stack.keys():
                self._adopt(finished)
                continue
            dense = None
            if self._trainer is not None:
                dense = DenseStream(self._record(stack, passed_dense), self._pieces, self._store)
                self._run_dense(dense, stack, finished)
            if not self._is_dense:
                self._adopt(finished)
                finished = []
            calls = self._record(stack, passed, is_last)
            last = max((position for position, name in enumerate(stack) if name in unfinished), default=0)
            groups = groups_of(stack, self._together)[: last // self._together + 1 if is_last else None]
            with closing(self.source.in_groups(groups)) as found:
                for group in found:
                    yield from self._steps_of(calls, dense, {name: stack[name] for name in group}, unfinished)
            # The next stack reads what this one gives: in a dense walk, what it gave before it was pruned.
            passed.append(calls.passed)
            if dense is not None:
                passed_dense.append(dense.passed)
            self._adopt(finished)

    def _record(self, stack: Mapping[str, nn.Module], passed: Sequence[Passed], is_last: bool = False) -> BlockCalls:
        return BlockCalls(self._model, stack, self._batches, self.source, self._store(), passed, is_last)

    def _run_dense(self, dense: DenseStream, stack: Mapping[str, nn.Module], finished: Sequence[str]) -> None:
        """Lets the dense model go through finished blocks, before they are pruned."""
        count = 1 + max((position for position, name in enumerate(stack) if name in finished), default=-1)
        with closing(self.source.one_by_one([*stack][:count])) as names:
            for name in names:
                dense.advance(name, stack[name])

    def _steps_of(
        self, calls: BlockCalls, dense: DenseStream | None, blocks: Mapping[str, nn.Module], unfinished: Weights
    ) -> Iterator[Step]:
        """The steps of blocks that are in memory together."""
        if self._trainer is not None and dense is not None and unfinished.keys() & blocks.keys():
            yield from self._steps_with_training(self._trainer, calls, dense, blocks)
            return
        for name, block in blocks.items():
            if dense is not None and not dense.has_passed(name):
                dense.advance(name, block)
            if name not in unfinished:
                calls.advance(name, block)
                continue
            if self._is_dense:
                groups = self._order(calls, name, block).groups() if self._needs_grams else [[*self.weights[name]]]
                # Looking also moves on to the next block, before this one is pruned.
                yield self._step(groups, partial(calls.advancing, name, block))
                continue
            yield from self._pruning_steps(calls, name, block, self._order(calls, name, block))
            calls.advance(name, block)

    def _order(self, calls: BlockCalls, name: str, block: nn.Module) -> RunningOrder:
        """The order in which the weights of a block run."""
        ask_first = None if self._reduce is None else self._reduce.processes.from_first
        return RunningOrder(self.weights[name], lambda: next(iter(calls.outputs(name, block))), ask_first)

    def _pruning_steps(self, calls: BlockCalls, name: str, block: nn.Module, order: RunningOrder) -> Iterator[Step]:
        """The steps of a block that sees what its predecessors have become."""
        groups = order.groups()
        for step in [[group] for group in groups] if self._needs_grams else [groups]:
            last = order.last_module([weight for group in step for weight in group])
            yield self._step(step, partial(calls.run_to, name, block, last))

    def _steps_with_training(
        self, trainer: BlockTrainer, calls: BlockCalls, dense: DenseStream, blocks: Mapping[str, nn.Module]
    ) -> Iterator[Step]:
        """The steps of blocks that are trained together, and the one that trains them.

        Args:
            trainer: Trains them.
            calls: Calls of the blocks, and what enters the first one.
            dense: Goes through the blocks.
            blocks: Module path to block, in memory.
        """
        entering, aims, regions, weights = calls.hidden, [], [], []
        *_, last = blocks
        if len(blocks) > 1:
            entering = calls.copied_hidden(self._store())
        before: dict[PrunableWeight, Tensor] = {}
        for name, block in blocks.items():
            order = self._order(calls, name, block) if name in self.weights else None
            own = [] if order is None else [weight for group in order.groups() for weight in group]
            weights += own
            if name == last:
                regions = find_regions(block, weights, self._region, self._outputs)
            aims = dense.advance(name, block, regions)
            before |= {weight: weight.matrix.clone() for weight in own if self._trains_masks}
            if order is not None:
                yield from self._pruning_steps(calls, name, block, order)
            if name != last:
                calls.pass_on(name, block)

        def look() -> Seen:
            changed, outcome = trainer.train(blocks, regions, aims, calls, entering, before)
            self.trained |= {name: outcome for name in blocks if name in self.weights}
            aims.clear()  # the step itself is there for longer
            regions.clear()
            before.clear()
            for weight, values in changed:
                step.write(weight, values == 0, values)
            return Seen({}, {})

        step = Step((), look)
        yield step
        if len(blocks) > 1:
            calls.go_back(entering)
            entering = calls.hidden  # the copy is let go
        step.look = lambda: Seen({}, {})  # it held all that it looked with, which in turn wrote to it
        for name, block in blocks.items():
            calls.advance(name, block)

    def _step(self, groups: Sequence[list[PrunableWeight]], run: Callable[[], Generator[int, None, None]]) -> Step:
        weights = [weight for group in groups for weight in group]

        def look() -> Seen:
            languages = list(self._language_weights)
            statistics = StatisticsCollector(weights, languages, self._activities, self._reduce)
            looked_into = groups if self._needs_grams else ()
            grams = GramCollector(looked_into, self._language_weights, self._reduce)
            run_watched(run(), [piece.language for piece in self._pieces], statistics, grams)
            return Seen(statistics.finish(), grams.finish())

        return Step(weights, look)


def walk_blocks(
    model: "PreTrainedModel",
    weights: Weights,
    chunks: CalibrationChunks,
    config: MWandaConfig,
    source: BlockSource,
    store: Callable[[], HiddenStates] = OnDevice,
    finished: Finished | None = None,
    outputs: Mapping[nn.Module, Tensor] | None = None,
) -> BlockByBlock:
    """The walk that prunes a model; of several processes, each reads its part of the text.

    Args:
        model: As for `BlockByBlock`, like all others.
        weights: As there.
        chunks: All calibration data.
        config: As there; weighs the languages too.
        source: As there.
        store: As there.
        finished: As there.
        outputs: As there.
    """
    weighed = weigh_languages(config, chunks.tokens).tolist()
    own, reduce = deal(chunks, readers(model))
    languages = dict(zip(chunks.tokens, weighed, strict=True))
    given = (model, weights, own, languages, config, source, store, reduce)
    return BlockByBlock(*given, finished=finished, outputs=outputs)


def _pieces(chunks: CalibrationChunks, config: MWandaConfig, trains: bool) -> Iterator[tuple[Piece, Batch]]:
    """The batches, language by language; if blocks are trained, those that are held back are apart."""
    if not trains:
        for language, batch in chunks.batches(config.batch_size):
            yield Piece(language, False), batch
        return
    parts = zip(hold_back(chunks, config.reconstruction_held_out, config.seed), (False, True), strict=True)
    found = [
        (Piece(language, is_held), batch)
        for part, is_held in parts
        for language, batch in part.batches(config.reconstruction_batch_size)
    ]
    yield from sorted(found, key=lambda pair: pair[0])
