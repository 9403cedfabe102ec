"""What matrices that read the same input have in common is computed once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

from torch import Tensor

_kept: ContextVar[dict[Callable[..., Tensor], tuple[Any, ...]] | None] = ContextVar("kept", default=None)


@contextmanager
def sharing_inputs() -> Iterator[None]:
    """Within it, functions that are decorated with `once_per_input` remember what they have found last."""
    _kept.set({})
    try:
        yield
    finally:
        _kept.set(None)  # and no earlier one: a generator that is given up may end anywhere


def once_per_input(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorates a function of a Gram matrix: within `sharing_inputs`, it is not computed twice in a row for the same.

    Only what was found last is kept, and it goes before something else is computed. Nobody may change the Gram matrix,
    which is recognised as an object, or the result.
    """

    @wraps(compute)
    def found(gram: Tensor, *options: Any) -> Tensor:
        kept = _kept.get()
        if kept is None:
            return compute(gram, *options)
        if compute in kept:
            result: Tensor
            known, known_options, result = kept[compute]
            if known is gram and known_options == options:
                return result
            del kept[compute], known, result
        result = compute(gram, *options)
        kept[compute] = (gram, options, result)
        return result

    return found
