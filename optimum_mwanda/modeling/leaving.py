"""Tensors on their way from memory to disk."""

import os
import tempfile
import threading
from pathlib import Path

from torch import Tensor

from .offloading import OffloadedTensor
from .tensor_file import write_out

Read = list[tuple[OffloadedTensor, Tensor]]
"""Tensors that are kept elsewhere, and their values in memory."""


class Leaving(dict[str, Tensor]):
    """Changed tensors of a block by their keys, a tied one once; they are taken out to be written.

    Attributes:
        half_gone: Set when those that were taken out before the last one are half of the bytes.
    """

    def __init__(self, changed: Read) -> None:
        super().__init__((tensor.place[1], value) for tensor, value in changed if tensor.place is not None)
        self.half_gone = threading.Event()
        self._left = self._total = sum(value.nbytes for value in self.values())

    def pop(self, key: str) -> Tensor:  # type: ignore[override]
        """Takes a tensor out, when the one before is written."""
        if 2 * self._left <= self._total:
            self.half_gone.set()
        value = super().pop(key)
        self._left -= value.nbytes
        return value


def save_apart(name: str, values: dict[str, Tensor], folder: str | None) -> Path:
    """Writes tensors into a new file, and takes them out of what it is given.

    Args:
        name: What the name of the file begins with.
        values: Name to tensor.
        folder: Where the file is made.
    """
    handle, path = tempfile.mkstemp(prefix=f"{name}.", suffix=".safetensors", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            write_out(values, file.write)
    except BaseException:
        Path(path).unlink(missing_ok=True)
        raise
    return Path(path)
