"""Writing a safetensors file one tensor at a time."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from torch import Tensor

from ..modeling.tensor_file import as_bytes, contents


class SafetensorsWriter:
    """Writes a safetensors file of tensors that need not be in memory together.

    The file begins with a table of contents and must not have gaps, but readers want each tensor aligned to its
    element size. So tensors are collected beside the file by element size, and joined at the end of the block.

    Args:
        path: File to write.
        metadata: Its metadata; transformers asks for `{"format": "pt"}`.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str]) -> None:
        self._path = path
        self._metadata = dict(metadata)
        self._spools: dict[int, BinaryIO] = {}
        self._entries: dict[int, list[tuple[str, Tensor]]] = {}
        self.size = 0
        """Bytes of all tensors so far."""

    def add(self, name: str, tensor: Tensor) -> None:
        """Appends one tensor.

        Args:
            name: Its name.
            tensor: The tensor, on the CPU.
        """
        width = tensor.element_size()
        if width not in self._spools:
            self._spools[width] = tempfile.TemporaryFile(dir=self._path.parent)  # noqa: SIM115
        self._spools[width].write(as_bytes(tensor))
        self._entries.setdefault(width, []).append((name, tensor.to("meta")))
        self.size += tensor.nbytes

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._assemble()
        finally:
            for spool in self._spools.values():
                spool.close()

    def _assemble(self) -> None:
        widths = sorted(self._spools, reverse=True)
        with self._path.open("wb") as file:
            file.write(contents((entry for width in widths for entry in self._entries[width]), self._metadata))
            for width in widths:
                self._spools[width].seek(0)
                shutil.copyfileobj(self._spools[width], file, 1 << 24)
