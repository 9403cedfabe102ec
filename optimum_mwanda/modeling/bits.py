"""Masks as packed bits."""

import torch
from torch import Tensor


def pack_bits(mask: Tensor) -> Tensor:
    """Packs a boolean mask into bytes, the first entry in the lowest bit; shape `(⌈numel / 8⌉,)`."""
    # The result comes first: behind what is freed here, it would keep the allocator from using that memory again.
    packed = torch.zeros(-(-mask.numel() // 8), dtype=torch.uint8, device=mask.device)
    flat = torch.nn.functional.pad(mask.reshape(-1).to(torch.uint8), (0, -mask.numel() % 8)).view(-1, 8)
    for bit in range(8):
        packed |= flat[:, bit] << bit
    return packed


def unpack_bits(packed: Tensor, shape: torch.Size) -> Tensor:
    """Inverse of `pack_bits`."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = (packed[:, None] >> shifts) & 1
    return bits.view(-1)[: shape.numel()].bool().view(shape)
