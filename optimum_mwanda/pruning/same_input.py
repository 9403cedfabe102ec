"""What matrices that read the same input have in common is computed once."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")

_kept: ContextVar[dict[Callable[..., Any], tuple[Any, ...]] | None] = ContextVar("kept", default=None)
_given_away: ContextVar[Collection[Tensor]] = ContextVar("given_away", default=())


@contextmanager
def sharing_inputs(given_away: Collection[Tensor] = ()) -> Iterator[None]:
    """Within it, functions that are decorated with `once_per_input` remember what they have found last.

    Args:
        given_away: Gram matrices that `to_overwrite` need not copy: those who read the same one come one after the
            other, and nobody needs it when they are done.
    """
    _kept.set({})
    _given_away.set(given_away)
    try:
        yield
    finally:
        _kept.set(None)  # and no earlier one: a generator that is given up may end anywhere
        _given_away.set(())


def to_overwrite(gram: Tensor) -> Tensor:
    """A Gram matrix whose memory may be used for something else: itself, if it is given away, or a copy."""
    return gram if any(gram is each for each in _given_away.get()) else gram.clone()


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
