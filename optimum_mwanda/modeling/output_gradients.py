"""Seeing how a loss depends on what modules give, while a backward pass runs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .blocks import first
from .inputs import See

_SCALES = (2.0**12, 2.0**4, 1.0)
"""By what a loss is multiplied in float16, which holds neither large nor small numbers: the first that works."""
_Found = TypeVar("_Found")


def at_some_scale(dtype: torch.dtype, run: Callable[[float], _Found]) -> _Found:
    """Runs back from a loss whose gradients at single tokens are about 1, so that they neither vanish nor overflow.

    Args:
        dtype: Type of the model.
        run: Takes the number to multiply the loss by, and raises `FloatingPointError` where that is too much.
    """
    *tried, last = _SCALES if dtype == torch.float16 else (1.0,)
    for scale in tried:
        try:
            return run(scale)
        except FloatingPointError:
            continue
    return run(last)


@contextmanager
def watch_output_gradients(modules: Mapping[str, nn.Module], see: See, scale: float = 1.0) -> Iterator[None]:
    """Calls `see(name, g)` with the gradient of each output, float32 of shape `(..., out)`, as long as it is open.

    It works whether or not parameters need gradients, and with blocks that run once more for the backward pass.

    Args:
        modules: Name to a module to watch. Of several outputs, the first one counts. Matrices of fused experts have no
            outputs that can be seen.
        see: Takes the gradients, once per call of a module that the loss depends on.
        scale: By what the loss was multiplied; gradients are divided by it.
    """

    def pass_on(name: str, gradient: Tensor) -> None:
        see(name, gradient.float() / scale)

    def look(_: nn.Module, __: Any, output: Any, name: str) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None
        states = first(output)
        if torch.is_tensor(output) and not output.requires_grad:  # nothing before it needs a gradient
            states = output.detach().requires_grad_().clone()  # a model may change it in place
        states.register_hook(partial(pass_on, name))  # type: ignore[no-untyped-call]
        return states if torch.is_tensor(output) else None

    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(partial(look, name=name)))
        yield
    finally:
        for handle in handles:
            handle.remove()
