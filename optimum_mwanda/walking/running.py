"""Running a model of which each block comes into memory once, for all batches."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..modeling.block_source import BlockSource
from ..modeling.blocks import find_stacks, run_model
from ..modeling.pages import freed_at_once
from ..utils import progress_bar
from .recording import Passed, passing_by
from .replay import BlockCalls
from .store import HiddenStates

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def run_block_by_block(
    model: "PreTrainedModel",
    batches: Sequence[Mapping[str, Tensor]],
    store: Callable[[], HiddenStates],
    path: str | Sequence[str] | None = None,
    progress: bool = False,
) -> Generator[Any, None, None]:
    """Runs a model with offloaded blocks, and yields what it gives for each batch.

    Args:
        model: The model, in inference mode.
        batches: Its keyword arguments, batch by batch.
        store: Makes a place for the hidden states of all batches between two blocks.
        path: Module paths of the lists of blocks, if they are not found.
        progress: Whether to show a progress bar.
    """
    stacks = find_stacks(model, path)
    source = BlockSource({name: block for stack in stacks for name, block in stack.items()})
    passed: list[Passed] = []
    with freed_at_once():
        for stack in stacks:
            calls = BlockCalls(model, stack, batches, source, store(), passed, is_last=False)
            with closing(source.one_by_one(stack)) as names:
                for name in progress_bar(names, total=len(stack), description="Evaluating", show=progress):
                    calls.advance(name, stack[name])
            passed.append(calls.passed)
        for number, batch in enumerate(batches):
            with passing_by(passed, number):
                yield run_model(model, batch)
