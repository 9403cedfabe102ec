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

from ..modeling.sharding import is_sharded, own_part, share_out
from ..record.trainings import begin_training, count_steps
from ..record.verification import sparsity_record
from .pruned_entries import Masks, bare_model, find_matrices, read_masks

MASKS_KEPT = "masks kept"
"""What the record says about a training in which masks stay as they are."""

NO_DEEPSPEED = (
    "DeepSpeed steps on flat copies of the weights, in which masks cannot be kept: train with FSDP (fsdp_version=2) or "
    "DistributedDataParallel instead."
)

_RECORDED: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Models whose steps a block of `keep_masks` counts."""


class MaskedMatrix:
    """A matrix some of whose entries stay zero.

    Args:
        module: Module that holds it.
        attribute: Attribute of the module.
        pruned: Boolean, the shape of the parameter or of this process's part of it, True where an entry is pruned.
    """

    def __init__(self, module: nn.Module, attribute: str, pruned: Tensor) -> None:
        self._module = module
        self._attribute = attribute
        self._kept = ~pruned
        # Weak, because a wrapper that shares parameters out counts on letting go of the whole ones.
        self._watched: weakref.ref[Tensor] | None = None
        self._handle: RemovableHandle | None = None
        self._gradient_is_masked = False
        self._collects = False
        self._collected: Tensor | None = None

    @property
    def parameter(self) -> Tensor:
        """The parameter; wrappers such as FSDP may have put another in its place since the last look."""
        parameter: Tensor = getattr(self._module, self._attribute)
        return parameter

    def kept(self) -> Tensor:
        """True where an entry is not pruned, of what this process holds of the parameter and on its device."""
        part = own_part(self.parameter)
        if self._kept.shape != part.shape:
            self._kept = share_out(self._kept.to(part.device), self.parameter)
        if self._kept.device != part.device:
            self._kept = self._kept.to(part.device)
        return self._kept

    def pruned(self) -> Tensor:
        """True where an entry is pruned; see `kept`."""
        return ~self.kept()

    def replace_mask(self, pruned: Tensor) -> None:
        """Prunes other entries from now on."""
        self._kept = ~pruned

    def collect_gradient(self) -> None:
        """Adds up the gradients of pruned entries until they are taken; not under FSDP."""
        self._collects, self._collected = True, None

    def take_gradient(self) -> Tensor | None:
        """What `collect_gradient` has added up, in float32; None if the matrix is not trained."""
        gradient, is_trained = self._collected, self.parameter.requires_grad
        self._collects, self._collected = False, None
        if gradient is None and is_trained:  # an expert that no token reached
            return torch.zeros(self.parameter.shape, dtype=torch.float32, device=self.parameter.device)
        return gradient if is_trained else None

    def watch(self) -> None:
        """Masks each gradient as soon as it is there, so that clipping sees only what is trained."""
        parameter: Any = self.parameter
        if not parameter.requires_grad or (self._watched is not None and self._watched() is parameter):
            return
        self.unwatch()
        self._watched = weakref.ref(parameter)
        if is_sharded(parameter) or not is_distributed():
            # In place, which is several times as fast. FSDP writes the gradient of its part beside autograd, and calls
            # only these hooks.
            self._handle = parameter.register_post_accumulate_grad_hook(self._mask_accumulated)
        else:
            # Before the gradient is accumulated, so that DistributedDataParallel sends around the masked one.
            self._handle = parameter.register_hook(self._masked)

    def unwatch(self) -> None:
        """Leaves gradients alone again."""
        if self._handle is not None:
            self._handle.remove()
        self._watched = self._handle = self._collected = None
        self._collects = False

    def before_step(self) -> None:
        """Masks the gradient if no hook has, because the parameter was replaced or has become trainable."""
        if not self._gradient_is_masked:
            self.watch()
            self.mask_gradient()
        self._gradient_is_masked = False

    def mask_gradient(self) -> None:
        """Sets the gradient of pruned entries to zero."""
        if self.parameter.grad is not None:
            own_part(self.parameter.grad).mul_(self.kept())

    def mask_weights(self) -> None:
        """Sets pruned entries to zero."""
        # Adding zero turns the -0.0 that a negative number leaves into 0.0.
        own_part(self.parameter.detach()).mul_(self.kept()).add_(0.0)

    def fill_kept(self) -> None:
        """Makes entries that are zero though they are not pruned the smallest normal number of their type."""
        part = own_part(self.parameter.detach())
        part.masked_fill_((part == 0).logical_and_(self.kept()), torch.finfo(part.dtype).tiny)

    def mask_state(self, state: dict[str, Any]) -> None:
        """Sets the moments of pruned entries to zero, where an optimizer keeps one for each entry.

        Quantized and factored moments stay: without gradients they fade, and weights are masked after each step anyhow.
        """
        for value in state.values():
            is_plain = torch.is_tensor(value) and (type(value) is Tensor or is_sharded(value))
            if is_plain and value.shape == self.parameter.shape and value.is_floating_point():
                own_part(value).mul_(self.kept())

    def counts(self) -> tuple[int, int]:
        """Zeros and entries of what this process holds."""
        part = own_part(self.parameter.detach())
        return part.numel() - int(torch.count_nonzero(part)), part.numel()

    @torch.no_grad()
    def _mask_accumulated(self, _: Tensor) -> None:
        self._gradient_is_masked = True
        if self._collects and self.parameter.grad is not None:
            self._collect(self.parameter.grad)  # of pruned entries, earlier gradients are masked already
        self.mask_gradient()

    def _collect(self, gradient: Tensor) -> None:
        if self._collected is None:
            self._collected = torch.zeros(gradient.shape, dtype=torch.float32, device=gradient.device)
        self._collected.add_(gradient * self.pruned())

    def _masked(self, gradient: Tensor) -> Tensor:
        self._gradient_is_masked = True
        if self._collects:
            self._collect(gradient)
        # On a CPU a product is several times as fast as masked_fill.
        return gradient * self.kept()


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


def is_distributed() -> bool:
    """Whether this process trains together with others."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


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
