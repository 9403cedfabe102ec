"""Pruning block by block, with what each block's calls give: sequential calibration, refinement and reconstruction."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..calibration.collector import StatisticsCollector
from ..calibration.gram import GramCollector
from ..calibration.statistics import WeightStatistics
from ..configuration import MWandaConfig
from ..data.chunks import CalibrationChunks
from ..modeling.blocks import find_stacks
from ..modeling.inputs import RunningOrder
from ..modeling.interrupts import check_interrupts
from ..modeling.weights import PrunableWeight
from ..pruning.allocation import SparsityPlan
from ..pruning.experts_policy import lacking_experts, settle
from ..pruning.scoring import weigh_languages
from ..pruning.update import mask_and_values
from .editor import WeightEditor
from .replay import BlockCalls

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Weights = dict[str, list[PrunableWeight]]


class BlockwisePruning:
    """Walks through a model block by block and prunes each with what enters its weights.

    With `calibration="sequential"` a block sees what its pruned predecessors give. With Gram matrices so do the weights
    inside it: those that read the same input (query, key and value; the output projection; ...) are done
    together, one such group after the other. With `"dense"` everything sees what the unpruned model gives. Memory is
    needed for the hidden states of all batches and the Gram matrices of one group (of one block, if dense).

    Args:
        model: The model, in inference mode. It is run once, over `batches`, to record the calls of its blocks.
        config: Settings.
        chunks: Calibration data.
        batches: The batches of `chunks`.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        config: MWandaConfig,
        chunks: CalibrationChunks,
        batches: Iterable[dict[str, Tensor]],
    ) -> None:
        self._model = model
        self._config = config
        self._languages, self._batches = zip(*chunks.batches(config.batch_size), strict=True)
        self._stacks = find_stacks(model, config.blocks)
        self._shares = weigh_languages(config, chunks.tokens)
        self._names = list(chunks.tokens)
        everything = {name: block for stack in self._stacks for name, block in stack.items()}
        self._recorded = {0: BlockCalls(model, self._stacks[0], batches, through=everything)}
        if config.calibration == "dense":  # later stacks are to read what the unpruned ones before them give
            for number, stack in enumerate(self._stacks[1:], 1):
                self._recorded[number] = BlockCalls(model, stack, self._batches)

    def run(self, weights: Weights, plan: SparsityPlan, editor: WeightEditor) -> Iterator[PrunableWeight]:
        """Prunes the weights; yields each when it is done.

        Args:
            weights: Module path of a block to its weights.
            plan: Sparsity per block.
            editor: Changes the weights, and takes that back if it must.
        """
        for number, stack in enumerate(self._stacks):
            calls = self._recorded.pop(number, None)
            if calls is None:  # it reads what the stacks before it give, now that they are pruned
                calls = BlockCalls(self._model, stack, self._batches)
            for name, block in stack.items():
                yield from self._prune_block(calls, name, block, weights.get(name, []), plan, editor)

    def _prune_block(
        self,
        calls: BlockCalls,
        name: str,
        block: nn.Module,
        weights: list[PrunableWeight],
        plan: SparsityPlan,
        editor: WeightEditor,
    ) -> Iterator[PrunableWeight]:
        """Prunes the weights of one block and hands its outputs on to the next one."""
        if not weights:
            calls.advance(name, block)
            return
        is_dense = self._config.calibration == "dense"
        order = RunningOrder(weights, lambda: next(iter(calls.outputs(name, block))))
        groups = order.groups()
        steps = [groups] if is_dense or not self._config.needs_grams else [[group] for group in groups]
        for step in steps:
            weights = [weight for group in step for weight in group]
            runs = calls.advancing(name, block) if is_dense else calls.run_to(name, block, order.last_module(weights))
            entries, grams = self._look(step, runs)
            for weight in weights:
                entry, gram = entries.get(weight.name), grams.get(weight.name)
                pruned, values = mask_and_values(weight, entry, gram, self._shares, plan[name], self._config)
                if values is None:
                    editor.zero(weight, pruned)
                else:
                    editor.replace(weight, values)
                check_interrupts()
                yield weight
        if not is_dense:
            calls.advance(name, block)

    def _look(
        self, groups: Sequence[list[PrunableWeight]], runs: Generator[int, None, None]
    ) -> tuple[dict[str, WeightStatistics], dict[str, Tensor]]:
        """Runs a block over all batches for the statistics of weights in it and, if need be, their Gram matrices."""
        weights = [weight for group in groups for weight in group]
        statistics = StatisticsCollector(weights, self._names, [self._config.activity] if self._config.activity else [])
        shares = dict(zip(self._names, self._shares.tolist(), strict=True))
        grams = GramCollector(groups if self._config.needs_grams else [], shares)
        with closing(runs), statistics, grams:
            for language in self._languages:
                statistics.start(language)
                grams.start(language)
                next(runs)
            next(runs, None)
        entries = statistics.finish()
        lacking = lacking_experts(weights, entries, self._config)
        known = {weight.name for weight in weights if weight.expert_name not in lacking}
        found = {name: gram for name, gram in grams.finish().items() if name in known}
        return settle(weights, entries, lacking, self._config), found
