"""Hearing which tensors in the files of a checkpoint were not used.

What `from_pretrained` returns lacks those that the authors of a class chose to ignore, such as layers that predict
several tokens at once. Nothing here imports transformers, because this is imported while transformers is.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

# Buffers that were stored in the past and are computed today.
_COMPUTED = ("position_ids", "inv_freq", "original_inv_freq", "masked_bias", "relative_position_index", "version")
_MASKS = ("attn.bias", "attention.bias")

_unused: ContextVar[set[str] | None] = ContextVar("_unused", default=None)


@contextlib.contextmanager
def listening() -> Iterator[set[str]]:
    """Collects the names of tensors that `from_pretrained` finds in the files and has no place for."""
    unused: set[str] = set()
    token = _unused.set(unused)
    try:
        yield unused
    finally:
        _unused.reset(token)


def note_unused(result: Any, tensors: dict[str, Any]) -> None:
    """Called with what the function that loads every checkpoint of transformers has returned.

    Args:
        result: What it returned: an object in a tuple, or in transformers 5.0 a tuple of sets.
        tensors: Name to tensor or slice in the files.
    """
    unused = _unused.get()
    if unused is None:
        return
    found = getattr(result[0], "unexpected_keys", None)
    unused.update(name for name in (result[1] if found is None else found) if not _is_computed(name, tensors.get(name)))


def _is_computed(name: str, tensor: Any) -> bool:
    if name.rpartition(".")[2] in _COMPUTED:
        return True
    shape = () if tensor is None else tensor.get_shape() if hasattr(tensor, "get_shape") else tensor.shape
    return name.endswith(_MASKS) and len(shape) == 4
