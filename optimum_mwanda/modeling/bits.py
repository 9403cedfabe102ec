"""Masks as packed bits."""

import numpy as np
import torch
from torch import Tensor


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
