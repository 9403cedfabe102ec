"""Holding back a part of each language's calibration chunks, to judge what is trained on the others."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from .chunks import CalibrationChunks
from .packing import Batch


def hold_back(chunks: CalibrationChunks, share: float, seed: int) -> tuple[CalibrationChunks, CalibrationChunks]:
    """Divides the chunks of every language at random.

    Args:
        chunks: Calibration data.
        share: Share to hold back. A language with several chunks holds back at least one, unless the share is 0, and
            keeps at least one.
        seed: For the choice.

    Returns:
        What is left, and what is held back; the latter lacks a language of which nothing is held back.
    """
    generator = torch.Generator().manual_seed(seed)
    left, held = {}, {}
    for language, parts in chunks.chunks.items():
        count = sum(len(part["input_ids"]) for part in parts)
        wanted = min(max(round(share * count), 1), count - 1) if share else 0
        is_held = torch.zeros(count, dtype=torch.bool)
        is_held[torch.randperm(count, generator=generator)[:wanted]] = True
        left[language] = _choose(parts, ~is_held)
        if wanted:
            held[language] = _choose(parts, is_held)
    return dataclasses.replace(chunks, chunks=left), dataclasses.replace(chunks, chunks=held)


def _choose(parts: Sequence[Batch], wanted: Tensor) -> tuple[Batch, ...]:
    """The chunks that are wanted, in their order."""
    masks = torch.split(wanted, [len(part["input_ids"]) for part in parts])
    return tuple(
        {name: values[mask] for name, values in part.items()}
        for part, mask in zip(parts, masks, strict=True)
        if mask.any()
    )
