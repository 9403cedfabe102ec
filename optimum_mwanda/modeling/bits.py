"""Masks as packed bits, and entries that a mask marks, moved by their bits."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of an entry to integers that take as many."""

_CACHED = 1 << 18
"""Entries that a CPU looks at in one go; the places of those that are marked take eight bytes each."""


def pack_bits(mask: Tensor) -> Tensor:
    """Packs a boolean mask into bytes, the first entry in the lowest bit; shape `(⌈numel / 8⌉,)`."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.packbits(mask.contiguous().numpy().reshape(-1), bitorder="little"))
    return _packed_on_device(mask)


def unpack_bits(packed: Tensor, shape: torch.Size) -> Tensor:
    """Inverse of `pack_bits`."""
    if packed.device.type == "cpu":
        bits = np.unpackbits(packed.numpy(), count=shape.numel(), bitorder="little")
        return torch.from_numpy(bits.view(np.bool_)).view(shape)
    return _unpacked_on_device(packed, shape)


def marked(values: Tensor, mask: Tensor) -> Tensor:
    """The entries of a tensor where a mask of its shape is True, row by row, one-dimensional."""
    if values.device.type != "cpu":
        return _marked_on_device(values, mask)
    entries, places = as_integers(values).numpy(), mask.numpy()
    found, end = np.empty(np.count_nonzero(places), dtype=entries.dtype), 0
    for part in cached_parts(values):
        taken = entries[part].reshape(-1).compress(places[part].reshape(-1))
        found[end : end + len(taken)] = taken
        end += len(taken)
    return torch.from_numpy(found).view(values.dtype)


def _marked_on_device(values: Tensor, mask: Tensor) -> Tensor:
    return values[mask]


def zero_marked(values: Tensor, mask: Tensor) -> None:
    """Sets the entries of a tensor to zero where a mask of its shape is True."""
    if values.device.type != "cpu":
        values.masked_fill_(mask, 0)
        return
    entries, places = as_integers(values).numpy(), mask.numpy()
    for part in cached_parts(values):
        np.multiply(entries[part], ~places[part], out=entries[part])  # with vector instructions
    torch.autograd.graph.increment_version(values)  # which numpy does not


def as_integers(values: Tensor) -> Tensor:
    """The same memory as integers."""
    return values.view(INTEGERS[values.element_size()])


def cached_parts(values: Tensor) -> Iterator[slice]:
    """Slices of the first dimension that hold so much that a CPU has it in its cache."""
    step = max(1, _CACHED * len(values) // max(1, values.numel()))
    return (slice(start, start + step) for start in range(0, len(values), step))


def _packed_on_device(mask: Tensor) -> Tensor:
    # The result comes first: behind what is freed here, it would keep the allocator from using that memory again.
    packed = torch.zeros(-(-mask.numel() // 8), dtype=torch.uint8, device=mask.device)
    flat = torch.nn.functional.pad(mask.reshape(-1).to(torch.uint8), (0, -mask.numel() % 8)).view(-1, 8)
    for bit in range(8):
        packed |= flat[:, bit] << bit
    return packed


def _unpacked_on_device(packed: Tensor, shape: torch.Size) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    unpacked = (packed[:, None] >> shifts) & 1
    return unpacked.view(-1)[: shape.numel()].bool().view(shape)
