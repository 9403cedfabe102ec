"""What modules do when they are called, changed for a while."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def replaced(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replaces what modules do when they are called."""
    own = {module: vars(module).get("forward") for module in forwards}  # an instance's own, if it has one
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, before in own.items():
            vars(module).pop("forward", None)
            if before is not None:
                module.forward = before


@contextmanager
def recomputed(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Lets modules keep only what enters them, and run once more when a backward pass comes to them."""

    def run(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # No module draws random numbers in inference mode.
        return checkpoint(partial(forward, **kwargs), *args, use_reentrant=False, preserve_rng_state=False)

    with replaced({module: partial(run, module.forward) for module in modules}):
        yield
