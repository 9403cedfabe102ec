"""Counting zeros."""

import torch
from torch import Tensor

from .sharding import own_part, sum_of_parts


def count_zeros(tensor: Tensor) -> int:
    """Number of zeros, of either sign; of a tensor that is shared out, every process must ask for it."""
    part = own_part(tensor)
    if part.is_floating_point() and part.element_size() == 1:
        part = part.to(torch.float32)  # torch cannot count in float8
    return int(sum_of_parts(part.numel() - torch.count_nonzero(part), tensor))
