"""What matrices that read the same input have in common is computed once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")

_kept: ContextVar[dict[Callable[..., Any], tuple[Any, ...]] | None] = ContextVar("kept", default=None)
_given_away: ContextVar[bool] = ContextVar("given_away", default=False)


@contextmanager
def sharing_inputs(gives_away: bool = False) -> Iterator[None]:
    """Within it, functions that are decorated with `once_per_input` remember what they have found last.

    Args:
        gives_away: Whether `to_overwrite` may give the Gram matrices away. Then matrices that read the same input come
            one after the other, and nobody reads its Gram matrix when they are done.
    """
    _kept.set({})
    _given_away.set(gives_away)
    try:
        yield
    finally:
        _kept.set(None)  # and no earlier one: a generator that is given up may end anywhere
        _given_away.set(False)


def to_overwrite(gram: Tensor) -> Tensor:
    """A Gram matrix whose memory may be used for something else: itself, if it is given away, or a copy."""
    return gram if _given_away.get() else gram.clone()


def once_per_input(compute: Callable[..., T]) -> Callable[..., T]:
    """Decorates a function of a Gram matrix: within `sharing_inputs`, it is not computed twice in a row for the same.

    Only what was found last is kept, and it goes before something else is computed. The Gram matrix is recognised as an
    object. Nobody may change it or the result, but for such functions, which overwrite what `to_overwrite` gives them.
    """

    @wraps(compute)
    def found(gram: Tensor, *options: Any) -> T:
        kept = _kept.get()
        if kept is None:
            return compute(gram, *options)
        if compute in kept:
            result: T
            known, known_options, result = kept[compute]
            if known is gram and known_options == options:
                return result
            del kept[compute], known, result
        result = compute(gram, *options)
        kept[compute] = (gram, options, result)
        return result

    return found
