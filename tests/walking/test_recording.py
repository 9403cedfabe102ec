"""Recorded calls are those of the model itself, whether or not its blocks have run for them."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from optimum_mwanda.modeling.block_source import BlockSource
from optimum_mwanda.modeling.blocks import find_stacks, inference_mode, run_blocks
from optimum_mwanda.walking.recording import record_calls
from optimum_mwanda.walking.store import OnDevice
from tests.families.family import Family
from tests.families.matrix import FAMILIES

CURRENT = [family for family in FAMILIES.values() if family.is_current]


def equal(one: Any, other: Any) -> bool:
    if torch.is_tensor(one):
        return torch.is_tensor(other) and torch.equal(one, other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    return one is other or bool(one == other)


def run_and_record(model: nn.Module, stack: dict[str, nn.Module], batches: list[Any]) -> Iterator[tuple[str, Any, Any]]:
    """Block, arguments and keyword arguments of every call of a plain forward pass."""
    found: list[tuple[str, Any, Any]] = []
    handles = [
        block.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: found.append((name, args, kwargs)), with_kwargs=True
        )
        for name, block in stack.items()
    ]
    for batch in batches:
        run_blocks(model, stack, batch)
    for handle in handles:
        handle.remove()
    yield from found


@pytest.mark.parametrize("family", CURRENT, ids=lambda family: family.name)
def test_calls_are_those_of_a_plain_forward_pass(family: Family) -> None:
    model = family.make()
    batches = [batch for batch in family.batches() for _ in range(2)]
    with inference_mode(model):
        for stack in find_stacks(model):
            hidden = OnDevice()
            calls = record_calls(model, stack, batches, hidden, BlockSource(stack))
            assert not any("forward" in vars(block) for block in stack.values())
            first = next(iter(stack))
            position = dict.fromkeys(stack, 0)
            for name, args, kwargs in run_and_record(model, stack, batches):
                number = position[name]
                position[name] += 1
                rest = {key: value for key, value in kwargs.items() if key != "hidden_states"}
                assert equal(calls[name][number], (args[1:], rest)), (name, number)
                if name == first:
                    assert torch.equal(hidden[number], args[0] if args else kwargs["hidden_states"])
            assert all(len(found) == len(batches) for found in calls.values())


@pytest.mark.parametrize("name", ["llama", "bloom", "gemma3", "mixtral", "bart", "t5"])
def test_blocks_run_for_the_first_batch_only_where_nothing_depends_on_them(name: str) -> None:
    model = FAMILIES[name].make()
    batches = FAMILIES[name].batches() * 3
    stack = find_stacks(model)[0]
    runs: list[int] = []
    weighty = next(module for block in stack.values() for module in block.modules() if isinstance(module, nn.Linear))
    weighty.register_forward_pre_hook(lambda *_: runs.append(1))
    with inference_mode(model):
        record_calls(model, stack, batches, OnDevice(), BlockSource(stack))
    assert len(runs) == (len(batches) if name == "t5" else 1)


def test_a_block_with_a_forward_of_its_own_gets_it_back() -> None:
    model = FAMILIES["llama"].make()
    stack = find_stacks(model)[0]
    block = next(iter(stack.values()))
    own = block.forward
    block.forward = lambda *args, **kwargs: own(*args, **kwargs)
    mine = block.forward
    with inference_mode(model):
        record_calls(model, stack, FAMILIES["llama"].batches() * 2, OnDevice(), BlockSource(stack))
    assert block.forward is mine
