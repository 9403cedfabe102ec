"""Recording what each block is called with, without running the blocks."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..modeling.block_source import BlockSource
from ..modeling.blocks import run_blocks
from ..modeling.forwards import replaced
from ..modeling.pages import release_pages_of
from .store import HiddenStates

Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
Calls: TypeAlias = dict[str, list[Call]]
Form: TypeAlias = int | None
"""What a block gives: a tuple of so many values, the first of them hidden states, or None for hidden states alone."""

_FORMS: tuple[Form, ...] = (None, 1, 2, 3, 4, 5, 6)
_PLAIN = (bool, int, float, str, bytes, slice, torch.dtype, torch.device, type(None))


class Passed(NamedTuple):
    """A stack through which all batches have run.

    Attributes:
        blocks: Its blocks, in the order in which they run.
        forms: What each of them gives.
        hidden: What the last of them gave.
    """

    blocks: Mapping[str, nn.Module]
    forms: Mapping[str, Form]
    hidden: HiddenStates


class Recorded(NamedTuple):
    """What is known of the calls of a stack.

    Attributes:
        calls: Name of a block to the arguments of its calls, one per batch, without hidden states; objects that the
            model passes to many blocks are kept once.
        forms: Name of a block to what it gives.
    """

    calls: Calls
    forms: dict[str, Form]


class _Unknown:
    """Stands for what a block gives besides hidden states."""


def record_calls(
    model: nn.Module,
    blocks: Mapping[str, nn.Module],
    batches: Iterable[Mapping[str, Tensor]],
    hidden: HiddenStates,
    source: BlockSource,
    passed: Sequence[Passed] = (),
) -> Recorded:
    """Records the arguments of every block of a stack, except hidden states.

    The arguments that a model passes to its blocks (position embeddings, masks, layer-wise options) hardly ever depend
    on what the blocks compute. So stand-ins that pass the hidden states on replace them. A trial with the first batch
    shows whether they can. If blocks give each other more than hidden states, as in T5, where the first one shares its
    position bias, they are brought into memory and run for every batch.

    Args:
        model: The model.
        blocks: Blocks to record, in the order in which they run. The parts of the model before them are run too.
        batches: Keyword arguments of the model, batch by batch.
        hidden: Takes the hidden states that enter the first block.
        source: Brings blocks into memory where they run.
        passed: Other stacks that have run over the same batches, and need not run again.

    Raises:
        ValueError: If the blocks run between those of a stack that has run.
    """
    calls: Calls = {name: [] for name in blocks}
    forms: dict[str, Form] = {}
    can_stand_in = False
    for number, batch in enumerate(batches):
        with passing_by(passed, number, blocks):
            if number == 0 and (found := _try_forms(model, blocks, batch)) is not None:
                forms, can_stand_in = found, True
            if can_stand_in:
                with _standing_in(blocks, forms), _recording(blocks, calls, hidden):
                    run_blocks(model, blocks, batch)
            else:
                with source.held_in_calls(blocks), _recording(blocks, calls, hidden), _noting(blocks, forms):
                    run_blocks(model, blocks, batch)
    if not source.is_resident:
        release_pages_of(model.parameters())  # embeddings, most of all
    return Recorded(calls, forms)


def _try_forms(
    model: nn.Module, blocks: Mapping[str, nn.Module], batch: Mapping[str, Tensor]
) -> dict[str, Form] | None:
    """Tries what stand-ins may give so that the model passes the first value on to the next block.

    A model that expects another form fails, or passes something else on. Only if all forms that work, with whatever
    hidden states, lead to the same arguments, and nothing in these comes from a block or may be filled by one, does it
    not matter what the blocks would do.

    Returns:
        A form that works, for each block; None if blocks must run.
    """
    found = [
        (form, calls)
        for form in _FORMS
        for change in (_unchanged, _changed)
        if (calls := _try(model, blocks, batch, form, change)) is not None
    ]
    if not found:
        return None
    (form, first), *others = found
    is_plain = all(_is_plain((*args, *kwargs.values())) for calls in first.values() for args, kwargs in calls)
    return dict.fromkeys(blocks, form) if is_plain and all(_same(calls, first) for _, calls in others) else None


def _try(
    model: nn.Module,
    blocks: Mapping[str, nn.Module],
    batch: Mapping[str, Tensor],
    form: Form,
    change: Callable[[Tensor], Tensor],
) -> Calls | None:
    """The calls of stand-ins that give one form; None if the model does not pass on what it is given."""
    found: Calls = {name: [] for name in blocks}
    given: Tensor | None = None
    is_passed_on = True

    def pass_on(states: Tensor) -> Tensor:
        nonlocal given, is_passed_on
        is_passed_on &= given is None or _same(given, states)
        given = change(states)
        return given

    try:
        with _standing_in(blocks, dict.fromkeys(blocks, form), pass_on), _recording(blocks, found, None):
            run_blocks(model, blocks, batch)
    except (MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception:  # the model cannot do with this form
        return None
    return found if is_passed_on else None


def _unchanged(states: Tensor) -> Tensor:
    return states


def _changed(states: Tensor) -> Tensor:
    return -1 - states


@contextmanager
def passing_by(passed: Sequence[Passed], number: int, blocks: Mapping[str, nn.Module] | None = None) -> Iterator[None]:
    """Lets stacks that have run give what they gave for a batch, without running.

    Args:
        passed: The stacks.
        number: Number of the batch.
        blocks: The blocks that run now, if any do.
    """
    called: set[str] = set()

    def give(*args: Any, stack: Passed, name: str, is_last: bool, **kwargs: Any) -> Any:
        called.add(name)
        return _formed(stack.hidden[number] if is_last else _hidden_states(args, kwargs), stack.forms[name])

    def check(*_: Any) -> None:
        for stack in passed:
            if called and (missing := stack.blocks.keys() - called) and len(missing) < len(stack.blocks):
                raise ValueError(
                    f"{next(iter(blocks or ()))!r} runs between blocks of another list, such as {min(missing)!r}: name "
                    "the lists with blocks=, in the order in which they run; lists that run by turns cannot be pruned "
                    "block by block."
                )

    forwards = {}
    for stack in passed:
        *_, last = stack.blocks
        for name, block in stack.blocks.items():
            forwards[block] = partial(give, stack=stack, name=name, is_last=name == last)
    first = [*(blocks or {}).values()][:1]
    with replaced(forwards), _removing([block.register_forward_pre_hook(check) for block in first]):
        yield


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
def _noting(blocks: Mapping[str, nn.Module], forms: dict[str, Form]) -> Iterator[None]:
    """Notes what each block gives."""

    def note(_: nn.Module, __: Any, output: Any, name: str) -> None:
        forms[name] = None if torch.is_tensor(output) else len(output)

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
def _standing_in(
    blocks: Mapping[str, nn.Module], forms: Mapping[str, Form], change: Callable[[Tensor], Tensor] = _unchanged
) -> Iterator[None]:
    """Lets blocks pass hidden states on in some form; hooks are called as usual."""

    def pass_on(*args: Any, form: Form, **kwargs: Any) -> Any:
        return _formed(change(_hidden_states(args, kwargs)), form)

    with replaced({block: partial(pass_on, form=forms[name]) for name, block in blocks.items()}):
        yield


def _formed(states: Tensor, form: Form) -> Any:
    return states if form is None else (states, *[_Unknown() for _ in range(form - 1)])


def _hidden_states(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states


def _is_plain(value: Any) -> bool:
    """Whether nothing in a value comes from a block or may be filled by one."""
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return torch.is_tensor(value) or isinstance(value, _PLAIN)


def _same(one: Any, other: Any) -> bool:
    """Whether two arguments are equal."""
    if one is other:
        return True
    if torch.is_tensor(one):
        return (
            torch.is_tensor(other) and one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
        )
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    return isinstance(one, _PLAIN) and bool(one == other)
