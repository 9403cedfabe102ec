"""Keeping pruned weights at zero while an optimizer trains the others."""

import itertools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ..modeling.sharding import is_sharded, own_part
from ..record.trainings import begin_training, count_steps
from ..record.verification import sparsity_record
from .masked_matrix import MaskedMatrix
from .pruned_entries import Masks, bare_model, find_matrices, read_masks

MASKS_KEPT = "masks kept"
"""What the record says about a training in which masks stay as they are."""

NO_DEEPSPEED = (
    "DeepSpeed steps on flat copies of the weights, in which masks cannot be kept: train with FSDP (fsdp_version=2) or "
    "DistributedDataParallel instead."
)

_RECORDED: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Models whose steps a block of `keep_masks` counts."""


class MaskKeeper:
    """Keeps the pruned weights of a model, their gradients and their moments at zero, until it is closed.

    Args:
        model: A pruned model, before or after `accelerator.prepare`.
        optimizer: The optimizer that trains it, before or after `accelerator.prepare`.
        masks: As `read_masks` gives them. None: the zeros of the matrices that the model's record names.

    Raises:
        TypeError: If masks are no mapping of names to tensors.
        ValueError: If the model has no record, its weights or the masks do not fit, or masks cannot be kept with this
            optimizer or wrapper. Nothing is changed then.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, masks: Masks | None = None) -> None:
        check_plain_parameters(model)
        optimizer = bare_optimizer(optimizer)
        masks = read_masks(model) if masks is None else masks
        places = find_matrices(model, masks)
        self.matrices = {name: MaskedMatrix(*places[name], masks[name]) for name in masks}
        _check_trained(self.matrices, optimizer)
        self.optimizer = optimizer
        for matrix in self.matrices.values():
            matrix.watch()
        self._handles: list[RemovableHandle] = [
            optimizer.register_step_pre_hook(lambda *_: self._before_step()),
            optimizer.register_step_post_hook(lambda *_: self._after_step()),
        ]
        self.enforce()

    @torch.no_grad()
    def enforce(self) -> None:
        """Sets weights, gradients and moments of pruned entries to zero."""
        for matrix in self.matrices.values():
            matrix.mask_weights()
            matrix.mask_gradient()
            matrix.mask_state(self.optimizer.state.get(matrix.parameter, {}))

    def masks(self) -> dict[str, Tensor]:
        """The masks as they are now, in the form of `read_masks`."""
        return {name: matrix.pruned() for name, matrix in self.matrices.items()}

    def replace_masks(self, masks: Masks) -> None:
        """Prunes other entries from now on; entries that are pruned no longer start from zero.

        Args:
            masks: Of some or all of the matrices.
        """
        for name, pruned in masks.items():
            self.matrices[name].replace_mask(pruned)
        self.enforce()

    @torch.no_grad()
    def fill_kept(self) -> None:
        """Lets only pruned entries be zero, so that the zeros of a checkpoint are the masks."""
        for matrix in self.matrices.values():
            matrix.fill_kept()

    @torch.no_grad()
    def sparsity(self) -> float:
        """Counts the share of zeros in all matrices; processes that share them out must all ask."""
        counts = torch.tensor([matrix.counts() for matrix in self.matrices.values()]).sum(0)
        parameters = [matrix.parameter for matrix in self.matrices.values()]
        if any(map(is_sharded, parameters)):
            counts = counts.to(own_part(parameters[0]).device)
            torch.distributed.all_reduce(counts)
        zeros, entries = counts.tolist()
        return float(zeros / entries)

    def close(self) -> None:
        """Leaves the model and the optimizer alone again."""
        for handle in self._handles:
            handle.remove()
        for matrix in self.matrices.values():
            matrix.unwatch()

    @torch.no_grad()
    def _before_step(self) -> None:
        for matrix in self.matrices.values():
            matrix.before_step()

    @torch.no_grad()
    def _after_step(self) -> None:
        for matrix in self.matrices.values():
            matrix.mask_weights()


@contextmanager
def keep_masks(model: nn.Module, optimizer: Optimizer, masks: Masks | None = None) -> Iterator[MaskKeeper]:
    """Keeps the pruned weights of a model at zero inside a `with` block, for training loops without a `Trainer`.

    Gradients are masked when they are computed, so clipping and moments see only what is trained, and weights are
    masked after every optimizer step. The record says how many steps were taken, also in what is saved in between.
    Inside, `keeper.sparsity()` counts the zeros. With several optimizers, nest a block for each that trains pruned
    matrices; the steps of the outer one are counted.

    Args:
        model: As for `MaskKeeper`.
        optimizer: As for `MaskKeeper`.
        masks: As for `MaskKeeper`.

    Yields:
        The `MaskKeeper`.

    Raises:
        ValueError: As for `MaskKeeper`.
    """
    keeper = MaskKeeper(model, optimizer, masks)
    bare, steps = bare_model(model), itertools.count(1)

    def record_step(*_: Any) -> None:
        step = next(steps)
        if step == 1:
            begin_training(bare, MASKS_KEPT)
        count_steps(bare, step)

    is_recorded = sparsity_record(bare) is not None and bare not in _RECORDED
    handle = keeper.optimizer.register_step_post_hook(record_step) if is_recorded else None
    if is_recorded:
        _RECORDED.add(bare)
    try:
        yield keeper
    finally:
        if handle is not None:
            handle.remove()
            _RECORDED.discard(bare)
        keeper.close()


def bare_optimizer(optimizer: Any) -> Optimizer:
    """The optimizer inside accelerate's wrapper.

    Raises:
        ValueError: If masks cannot be kept with it.
    """
    if "DeepSpeed" in type(optimizer).__name__:
        raise ValueError(NO_DEEPSPEED)
    inner = getattr(optimizer, "optimizer", optimizer)
    if not isinstance(inner, Optimizer):
        raise ValueError(
            f"{type(optimizer).__name__} is not a torch.optim.Optimizer, so weights cannot be masked after its steps: "
            "give one that is."
        )
    return inner


def check_plain_parameters(model: nn.Module) -> None:
    """Checks that a model's parameters are its matrices.

    Raises:
        ValueError: If a wrapper made them flat.
    """
    if any(type(parameter).__name__ == "FlatParameter" for parameter in model.parameters()):
        raise ValueError(
            "The model's matrices are flattened by FSDP version 1, so their masks cannot be kept: set fsdp_version=2."
        )


def _check_trained(matrices: dict[str, MaskedMatrix], optimizer: Optimizer) -> None:
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trainable = [name for name, matrix in matrices.items() if matrix.parameter.requires_grad]
    if trainable and not any(id(matrices[name].parameter) in trained for name in trainable):
        raise ValueError(
            f"The optimizer trains none of the {len(trainable)} pruned matrices that need gradients, {trainable[0]!r} "
            "for example: give the optimizer of this model, made from the parameters that the model has now."
        )
