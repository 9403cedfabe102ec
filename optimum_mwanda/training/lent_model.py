"""A model that is lent to a training and comes back in its own form."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..record.matrices import matrix_attributes
from .pruned_entries import Masks
from .update_maths import keep_zeros

SHORT = (torch.float16, torch.bfloat16)
"""Types that cannot tell apart what a weight was before a step and after it."""


@contextmanager
def lent_to_training(model: nn.Module, masks: Masks) -> Iterator[None]:
    """Has a model in float32 inside a `with` block, and in its own types again afterwards, with the same zeros.

    A weight that is not pruned but becomes zero, as in short types small ones do, becomes the smallest normal number.
    Which parameters need gradients, and which modules are in training mode, is as before, too.

    Args:
        model: The model. It may be another one's part in between, but must have its parameters again at the end.
        masks: Its masks.
    """
    types = {name: tensor.dtype for name, tensor in _tensors(model) if tensor.dtype in SHORT}
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    modes = [(module, module.training) for module in model.modules()]
    try:
        for name, tensor in _tensors(model):
            if name in types:
                tensor.data = tensor.data.float()
        yield
    finally:
        model.zero_grad()  # gradients have the type of their parameter
        for name, tensor in _tensors(model):
            if name in types:
                tensor.data = tensor.data.to(types[name])
        places = matrix_attributes(model)
        for name, pruned in masks.items():
            parameter: Any = getattr(*places[name])
            parameter.data = keep_zeros(parameter.data, ~pruned.to(parameter.device))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])
        for module, mode in modes:
            module.training = mode


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(model.named_parameters(), model.named_buffers())
