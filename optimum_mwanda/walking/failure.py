"""Why a pruning failed, without the state that it left behind."""

import contextlib
from collections.abc import Iterator

from .editor import PartiallyPrunedError


@contextlib.contextmanager
def bare_failures() -> Iterator[None]:
    """Inside the block, a failed pruning raises only its cause, for callers who restore the model or throw it away."""
    try:
        yield
    except PartiallyPrunedError as error:
        raise error.__cause__ or error from None
