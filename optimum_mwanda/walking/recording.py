"""Recording what each block is called with, without running the blocks."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..modeling.block_source import BlockSource
from ..modeling.blocks import run_blocks
from .store import HiddenStates

Call = tuple[tuple[Any, ...], dict[str, Any]]
Calls = dict[str, list[Call]]
_PLAIN = (bool, int, float, str, bytes, slice, torch.dtype, torch.device, torch.Size)


def record_calls(
    model: nn.Module,
    blocks: Mapping[str, nn.Module],
    batches: Iterable[Mapping[str, Tensor]],
    hidden: HiddenStates,
    source: BlockSource,
) -> Calls:
    """Records the arguments of every block of a stack, except hidden states.

    The arguments that a model passes to its blocks (position embeddings, masks, layer-wise options) hardly ever depend
    on what the blocks compute. So the blocks run only for the first batch; then stand-ins that pass the hidden states
    on replace them. If the stand-ins are called with the same arguments, they serve for all other batches. If blocks
    give each other more than hidden states, as in T5, where the first one shares its position bias, the blocks run for
    every batch.

    Args:
        model: The model.
        blocks: Blocks to record, in the order in which they run. The parts of the model before them are run too.
        batches: Keyword arguments of the model, batch by batch.
        hidden: Takes the hidden states that enter the first block.
        source: Brings blocks into memory where they run.

    Returns:
        Name of a block to the arguments of its calls, one per batch; objects that the model passes to many blocks are
        kept once.
    """
    calls: Calls = {name: [] for name in blocks}
    counts: dict[str, int | None] = {}
    can_stand_in = False
    for number, batch in enumerate(batches):
        if number == 0:
            with source.held_in_calls(), _recording(blocks, calls, hidden), _noting(blocks, counts):
                run_blocks(model, blocks, batch)
            can_stand_in = _agrees(model, blocks, batch, calls, counts)
        elif can_stand_in:
            with _standing_in(blocks, counts), _recording(blocks, calls, hidden):
                run_blocks(model, blocks, batch)
        else:
            with source.held_in_calls(), _recording(blocks, calls, hidden):
                run_blocks(model, blocks, batch)
    return calls


def _agrees(
    model: nn.Module,
    blocks: Mapping[str, nn.Module],
    batch: Mapping[str, Tensor],
    calls: Calls,
    counts: dict[str, int | None],
) -> bool:
    """Whether stand-ins are called with the same arguments as the blocks themselves."""
    found: Calls = {name: [] for name in blocks}
    try:
        with _standing_in(blocks, counts), _recording(blocks, found, None):
            run_blocks(model, blocks, batch)
    except Exception:  # a model that uses a block's further outputs finds None there
        return False
    return _same(calls, found)


@contextmanager
def _recording(blocks: Mapping[str, nn.Module], calls: Calls, hidden: HiddenStates | None) -> Iterator[None]:
    handles = []
    first = next(iter(blocks))
    for name, block in blocks.items():

        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
            # Hidden states come first or by name; the call keeps the other arguments.
            rest = {key: value for key, value in kwargs.items() if key != "hidden_states"}
            if name == first and hidden is not None:
                hidden.append(_hidden_states(args, kwargs))
            calls[name].append((args[1:], rest))

        handles.append(block.register_forward_pre_hook(keep, with_kwargs=True))
    with _removing(handles):
        yield


@contextmanager
def _noting(blocks: Mapping[str, nn.Module], counts: dict[str, int | None]) -> Iterator[None]:
    """Notes the form of each block's output: how many values, or None for hidden states alone."""

    def note(_: nn.Module, __: Any, output: Any, name: str) -> None:
        counts[name] = None if torch.is_tensor(output) else len(output)

    with _removing([block.register_forward_hook(partial(note, name=name)) for name, block in blocks.items()]):
        yield


@contextmanager
def _removing(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    """Removes hooks at the end of the block."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _standing_in(blocks: Mapping[str, nn.Module], counts: Mapping[str, int | None]) -> Iterator[None]:
    """Lets blocks pass hidden states on, in the form of their usual output; hooks are called as usual."""

    def pass_on(*args: Any, count: int | None, **kwargs: Any) -> Any:
        states = _hidden_states(args, kwargs)
        return states if count is None else (states, *[None] * (count - 1))

    own = {name: vars(block).get("forward") for name, block in blocks.items()}  # an instance's own, if it has one
    try:
        for name, block in blocks.items():
            block.forward = partial(pass_on, count=counts[name])
        yield
    finally:
        for name, block in blocks.items():
            del block.forward
            if (forward := own[name]) is not None:
                block.forward = forward


def _hidden_states(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states


def _same(one: Any, other: Any) -> bool:
    """Whether two arguments are equal; values of unknown types are equal only if they are the same object."""
    if one is other:
        return True
    if torch.is_tensor(one):
        return torch.is_tensor(other) and one.dtype == other.dtype and torch.equal(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    return isinstance(one, _PLAIN) and one == other
