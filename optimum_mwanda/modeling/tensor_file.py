"""A safetensors file that is written tensor by tensor, so that what is in it can leave memory."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .host_memory import to_host

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Data types of safetensors."""
_WORDS = {dtype: word for word, dtype in DTYPES.items()}
_PIECE = 2**24
"""Bytes that are handed over at a time."""


def write_out(
    tensors: dict[str, Tensor], write: Callable[[memoryview | bytes], object], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file, and takes each tensor out of a dictionary to write it.

    Args:
        tensors: Name to tensor; empty in the end.
        write: Takes the bytes of the file, piece by piece.
        metadata: Its metadata.
    """
    # Wide elements first, so that each is aligned, and of these what takes most memory.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), -tensors[name].nbytes, name))
    write(contents(((name, tensors[name]) for name in names), metadata or {}))
    for name in names:
        _write_tensor(tensors.pop(name), write)


def _write_tensor(tensor: Tensor, write: Callable[[memoryview | bytes], object]) -> None:
    data = as_bytes(to_host(tensor.detach()))
    for start in range(0, len(data), _PIECE):
        write(data[start : start + _PIECE])


def contents(tensors: Iterable[tuple[str, Tensor]], metadata: Mapping[str, str]) -> bytes:
    """What a safetensors file begins with.

    Args:
        tensors: Names and tensors in the order of the file, large elements before small ones; values do not matter.
        metadata: Its metadata.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, tensor in tensors:
        place = [position, position := position + tensor.nbytes]
        header[name] = {"dtype": _WORDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
    table = json.dumps(header, separators=(",", ":")).encode()
    table += b" " * (-len(table) % 8)
    return len(table).to_bytes(8, "little") + table


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor on the CPU, without a copy if it is contiguous."""
    # `numpy` shares memory with the tensor, and it knows bytes, unlike some types of torch.
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data
