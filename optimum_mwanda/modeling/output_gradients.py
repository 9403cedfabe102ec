"""Seeing how a loss depends on the outputs of each weight, while a backward pass runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .inputs import See
from .weights import PrunableWeight


@contextmanager
def watch_output_gradients(weights: Sequence[PrunableWeight], see: See, scale: float = 1.0) -> Iterator[None]:
    """Calls `see(name, g)` with the gradient of each output, float32 of shape `(..., out)`, as long as it is open.

    It works whether or not parameters need gradients, and with blocks that run once more for the backward pass.

    Args:
        weights: Weights to watch; those of fused experts have no outputs that can be seen.
        see: Takes the gradients, once per call of a weight that the loss depends on.
        scale: By what the loss was multiplied; gradients are divided by it.
    """

    def pass_on(name: str, gradient: Tensor) -> None:
        see(name, gradient.float() / scale)

    def look(_: nn.Module, __: Any, output: Tensor, name: str) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None
        if not output.requires_grad:  # nothing before it needs a gradient
            output = output.detach().requires_grad_().clone()  # a model may change it in place
        output.register_hook(partial(pass_on, name))  # type: ignore[no-untyped-call]
        return output

    handles = []
    try:
        for weight in weights:
            handles.append(weight.module.register_forward_hook(partial(look, name=weight.name)))
        yield
    finally:
        for handle in handles:
            handle.remove()
