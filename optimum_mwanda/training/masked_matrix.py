"""One matrix some of whose entries stay zero while an optimizer trains the others."""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..modeling.counting import count_zeros
from ..modeling.sharding import is_sharded, own_part, share_out


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
        if is_sharded(parameter) or not _is_distributed():
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
        return count_zeros(part), part.numel()

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


def _is_distributed() -> bool:
    """Whether this process trains together with others."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )
