"""Calling the blocks of a stack again as the model called them, without the rest of the model."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..modeling.block_source import BlockSource
from ..modeling.blocks import first
from ..modeling.fused_experts import find_experts
from ..modeling.interrupts import interruptible
from .recording import Call, Passed, record_calls
from .store import HiddenStates, OnDevice


class Reached(Exception):
    """Ends a run of a block early."""


class BlockCalls:
    """The calls of every block of a stack over a list of batches.

    The arguments of a block are kept unchanged: whatever a model passes to its blocks (position embeddings, masks,
    layer-wise options, outputs of earlier blocks) is passed again, without knowing its name.

    Args:
        model: The model.
        blocks: Blocks to record, in the order in which they run.
        batches: Keyword arguments of the model, batch by batch.
        source: Brings blocks into memory; who calls the methods here sees to it that the block in question is there.
        hidden: Store for the hidden states. None: they stay where the blocks leave them.
        passed: Other stacks that have run over the same batches, and need not run again.
        is_last: Whether nobody needs what the last block gives.

    Attributes:
        hidden: Hidden states that enter the next block.
        passed: This stack as one that has run, once all of it has.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Mapping[str, nn.Module],
        batches: Iterable[Mapping[str, Tensor]],
        source: BlockSource,
        hidden: HiddenStates | None = None,
        passed: Sequence[Passed] = (),
        is_last: bool = True,
    ) -> None:
        self.hidden = hidden or OnDevice()
        self._calls, forms = record_calls(model, blocks, batches, self.hidden, source, passed)
        self._batches = len(self._calls[next(iter(blocks))])
        self._is_last = is_last
        self.passed = Passed(blocks, forms, self.hidden)

    def run_to(self, name: str, block: nn.Module, module: nn.Module | None) -> Generator[int, None, None]:
        """Runs one block over every batch, up to the call of a module in it, and yields batch numbers.

        Hooks that the module already has are still called. A module that holds fused experts is run as well, as their
        inputs come about in it. Without a module, the block runs to its end.
        """

        def stop(*_: Any) -> None:
            raise Reached

        handles: list[RemovableHandle] = []
        if module is not None:
            has_experts = find_experts(module) is not None
            handles = [module.register_forward_hook(stop) if has_experts else module.register_forward_pre_hook(stop)]
        try:
            for index, (args, kwargs) in enumerate(self._calls[name]):
                with suppress(Reached), interruptible():
                    block(self.hidden[index], *args, **kwargs)
                yield index
        finally:
            for handle in handles:
                handle.remove()

    def outputs(self, name: str, block: nn.Module) -> Iterable[tuple[int, Tensor]]:
        """Runs one block over every batch and yields `(batch number, output hidden states)`."""
        for index, (args, kwargs) in enumerate(self._calls[name]):
            with interruptible():
                output = block(self.hidden[index], *args, **kwargs)
            yield index, first(output)

    def advance(self, name: str, block: nn.Module) -> None:
        """Replaces the hidden states by the block's outputs and forgets its calls; the very last block need not run."""
        if len(self._calls) > 1 or not self._is_last:
            for _ in self.advancing(name, block):
                pass
        else:
            self.forget(name)

    def pass_on(self, name: str, block: nn.Module) -> None:
        """Replaces the hidden states by the block's outputs for now: its calls are kept."""
        for index, output in self.outputs(name, block):
            self.hidden[index] = output

    def copied_hidden(self, place: HiddenStates) -> HiddenStates:
        """Copies the hidden states to another place, and returns it."""
        for index in range(self._batches):
            place.append(self.hidden[index])
        return place

    def go_back(self, hidden: HiddenStates) -> None:
        """Replaces the hidden states by what they were before."""
        for index in range(self._batches):
            self.hidden[index] = hidden[index]

    def advancing(self, name: str, block: nn.Module) -> Generator[int, None, None]:
        """Does the same as `advance`, batch by batch, and yields batch numbers; must be read to its end."""
        for index, output in self.outputs(name, block):
            self.hidden[index] = output
            yield index
        self.forget(name)

    def forget(self, name: str) -> None:
        """Forgets the calls of a block."""
        del self._calls[name]

    def call(self, name: str, number: int) -> Call:
        """The arguments of a block in a batch, except hidden states."""
        return self._calls[name][number]
