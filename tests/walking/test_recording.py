"""Recorded calls are those of the model itself, whether or not its blocks have run for them."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from optimum_mwanda.modeling.block_source import BlockSource
from optimum_mwanda.modeling.blocks import find_stacks, inference_mode, run_blocks
from optimum_mwanda.walking.recording import record_calls
from optimum_mwanda.walking.replay import BlockCalls
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
            calls, _ = record_calls(model, stack, batches, hidden, BlockSource(stack))
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


HANDING_ON = ("t5", "mt5", "gemma4_text", "gemma4_text (experts)")
"""Families whose first block shares its position bias, or whose blocks share keys and values."""


@pytest.mark.parametrize("family", CURRENT, ids=lambda family: family.name)
def test_blocks_run_only_where_they_give_each_other_more_than_hidden_states(family: Family) -> None:
    model = family.make()
    batches = family.batches() * 3
    for stack in find_stacks(model):
        runs: list[int] = []
        first = next(iter(stack.values()))
        inside = next(module for module in first.modules() if module._parameters and not [*module.children()])
        inside.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        with inference_mode(model):
            record_calls(model, stack, batches, OnDevice(), BlockSource(stack))
        assert len(runs) == (len(batches) if family.name in HANDING_ON else 0)


class ByTurns(nn.Module):
    """Two lists of blocks that run by turns."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.one, self.other = (nn.ModuleList(nn.Linear(4, 4) for _ in range(2)) for _ in range(2))

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> torch.Tensor:
        states: torch.Tensor = self.embed(input_ids)
        for one, other in zip(self.one, self.other, strict=True):
            states = other(one(states))
        return states


def test_lists_that_run_by_turns_are_not_taken_for_one_after_the_other() -> None:
    model, batches = ByTurns(), [{"input_ids": torch.arange(8)[None]}]
    stacks = find_stacks(model, ["one", "other"])
    with inference_mode(model):
        first = BlockCalls(model, stacks[0], batches, BlockSource(stacks[0]), is_last=False)
        with pytest.raises(ValueError, match=r"'other\.0' runs between blocks of another list, such as 'one\.1'"):
            record_calls(model, stacks[1], batches, OnDevice(), BlockSource(stacks[1]), [first.passed])


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
