"""Masks are kept in training loops of one's own."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from optimum_mwanda import keep_masks, read_masks, sparsity_record, verify_sparsity
from optimum_mwanda.training.keeper import MaskKeeper

from ..conftest import has_hooks
from .conftest import prune_sample

NAME = "model.layers.0.mlp.up_proj"
Make = Callable[[list[nn.Parameter]], Optimizer]


def take_steps(model: nn.Module, optimizer: Optimizer, steps: int = 2) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        ids = torch.randint(4, 6000, (2, 12), generator=generator)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def matrices(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.dim() == 2]


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1), id="SGD"),
        pytest.param(lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1), id="AdamW"),
        pytest.param(lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True), id="fused AdamW"),
        pytest.param(lambda p: torch.optim.Adagrad(p, lr=1e-2, initial_accumulator_value=0.1), id="Adagrad"),
        pytest.param(lambda p: torch.optim.Adafactor(p, lr=1e-2), id="Adafactor, factored moments"),
        pytest.param(lambda p: torch.optim.Muon(matrices(p), lr=1e-2), id="Muon, whose update fills every entry"),
    ],
)
def test_zeros_stay_with_every_optimizer(make: Make, pruned: PreTrainedModel) -> None:
    before = pruned.get_parameter(f"{NAME}.weight").detach().clone()
    optimizer = make(list(pruned.parameters()))
    with keep_masks(pruned, optimizer) as keeper:
        take_steps(pruned, optimizer)
        assert keeper.sparsity() == pytest.approx(pruned.config.mwanda_config["achieved_sparsity"])
    assert verify_sparsity(pruned).ok
    zeros = pruned.get_parameter(f"{NAME}.weight")[before == 0]
    assert not zeros.signbit().any()
    assert not torch.equal(pruned.get_parameter(f"{NAME}.weight"), before)


def test_the_record_counts_the_steps_while_they_are_taken(tmp_path: Path, pruned: PreTrainedModel) -> None:
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.1)
    with keep_masks(pruned, optimizer):
        pass  # no step, no training
    for steps in (2, 3):
        with keep_masks(pruned, optimizer):
            take_steps(pruned, optimizer, steps)
            pruned.save_pretrained(tmp_path)
    take_steps(pruned, optimizer, steps=1)
    for place in (pruned, tmp_path):
        record = sparsity_record(place)
        assert record is not None
        assert [(entry.recipe, entry.steps) for entry in record.training] == [("masks kept", 2), ("masks kept", 3)]


def test_two_optimizers_share_one_training(pruned: PreTrainedModel) -> None:
    wide = matrices(pruned.parameters())
    others = [parameter for parameter in pruned.parameters() if id(parameter) not in {id(each) for each in wide}]
    first = torch.optim.Muon(wide[:-4], lr=1e-2)
    second = torch.optim.SGD([*others, *wide[-4:]], lr=0.1)
    with keep_masks(pruned, first), keep_masks(pruned, second):
        for _ in range(3):
            for optimizer in (first, second):
                take_steps(pruned, optimizer, steps=1)
    assert verify_sparsity(pruned).ok
    record = sparsity_record(pruned)
    assert record is not None
    assert [entry.steps for entry in record.training] == [3]


@pytest.mark.parametrize("masks", [[torch.ones(2, 2)], "all", {NAME: None}])
def test_what_is_no_map_of_masks_is_refused(masks: Any, pruned: PreTrainedModel) -> None:
    with pytest.raises(TypeError, match=r"give one, as read_masks\(model\) does"):
        MaskKeeper(pruned, torch.optim.SGD(pruned.parameters(), lr=0.1), masks)
    assert not has_hooks(pruned)


def test_a_model_without_a_record_gets_none(sample_model: PreTrainedModel) -> None:
    masks = {NAME: torch.zeros_like(sample_model.get_parameter(f"{NAME}.weight"), dtype=torch.bool)}
    optimizer = torch.optim.SGD(sample_model.parameters(), lr=0.1)
    with keep_masks(sample_model, optimizer, masks):
        take_steps(sample_model, optimizer)
    assert sparsity_record(sample_model) is None


def test_outside_the_block_masks_are_kept_no_longer(pruned: PreTrainedModel) -> None:
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.1)
    with keep_masks(pruned, optimizer):
        take_steps(pruned, optimizer)
    take_steps(pruned, optimizer, steps=1)
    assert verify_sparsity(pruned).lost


def test_an_error_inside_the_block_leaves_no_hooks(pruned: PreTrainedModel) -> None:
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match="mine"), keep_masks(pruned, optimizer):
        raise RuntimeError("mine")
    assert not has_hooks(pruned)
    assert not optimizer._optimizer_step_post_hooks


def test_moments_of_earlier_steps_are_masked(pruned: PreTrainedModel) -> None:
    masks = read_masks(pruned)
    optimizer = torch.optim.AdamW(pruned.parameters(), lr=1e-3)
    take_steps(pruned, optimizer)
    moment = optimizer.state[pruned.get_parameter(f"{NAME}.weight")]["exp_avg"]
    assert moment[masks[NAME]].any()
    with keep_masks(pruned, optimizer, masks):
        assert not moment[masks[NAME]].any()
        assert moment[~masks[NAME]].any()
    assert verify_sparsity(pruned).ok


@pytest.mark.parametrize("early", [False, True], ids=["after prepare", "before prepare"])
def test_either_order_with_accelerate_gives_the_same_weights(early: bool, pruned: PreTrainedModel) -> None:
    expected = prune_sample()
    optimizer: Optimizer = torch.optim.AdamW(expected.parameters(), lr=1e-2)
    with keep_masks(expected, optimizer):
        take_steps(expected, optimizer)

    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(pruned.parameters(), lr=1e-2)
    if early:
        with keep_masks(pruned, optimizer):
            take_steps(*accelerator.prepare(pruned, optimizer))
    else:
        model, optimizer = accelerator.prepare(pruned, optimizer)
        with keep_masks(model, optimizer):
            take_steps(model, optimizer)
    assert all(map(torch.equal, pruned.parameters(), expected.parameters()))


def test_a_parameter_that_becomes_trainable_later_is_masked_too(pruned: PreTrainedModel) -> None:
    parameter = pruned.get_parameter(f"{NAME}.weight")
    parameter.requires_grad_(False)
    optimizer = torch.optim.AdamW(pruned.parameters(), lr=1e-2)
    with keep_masks(pruned, optimizer):
        take_steps(pruned, optimizer)
        parameter.requires_grad_(True)
        take_steps(pruned, optimizer)
        assert not optimizer.state[parameter]["exp_avg"][parameter == 0].any()
    assert verify_sparsity(pruned).ok


def test_other_entries_can_be_pruned_in_the_middle(pruned: PreTrainedModel) -> None:
    optimizer = torch.optim.AdamW(pruned.parameters(), lr=1e-2)
    with keep_masks(pruned, optimizer) as keeper:
        take_steps(pruned, optimizer)
        turned = read_masks(pruned)[NAME].flip(0)
        keeper.replace_masks({NAME: turned})
        take_steps(pruned, optimizer)
    parameter = pruned.get_parameter(f"{NAME}.weight")
    assert torch.equal(parameter == 0, turned)
    assert not optimizer.state[parameter]["exp_avg"][turned].any()


def test_the_optimizer_of_another_model_is_refused(pruned: PreTrainedModel) -> None:
    other = torch.optim.AdamW(prune_sample().parameters())
    with pytest.raises(ValueError, match="trains none of the 42 pruned matrices"), keep_masks(pruned, other):
        pass
    assert not other._optimizer_step_post_hooks


def test_what_is_no_torch_optimizer_is_refused(pruned: PreTrainedModel) -> None:
    class DeepSpeedOptimizerWrapper:
        optimizer = object()

    with (
        pytest.raises(ValueError, match="DeepSpeed steps on flat copies"),
        keep_masks(
            pruned,
            DeepSpeedOptimizerWrapper(),  # type: ignore[arg-type]
        ),
    ):
        pass
    with (
        pytest.raises(ValueError, match=r"object is not a torch\.optim\.Optimizer"),
        keep_masks(
            pruned,
            object(),  # type: ignore[arg-type]
        ),
    ):
        pass


def test_matrices_flattened_by_fsdp_1_are_refused(pruned: PreTrainedModel) -> None:
    class FlatParameter(nn.Parameter):
        pass

    pruned.flat = FlatParameter(torch.zeros(4))
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="fsdp_version=2"), keep_masks(pruned, optimizer):
        pass
