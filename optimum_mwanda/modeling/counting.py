"""Counting zeros."""

import torch
from torch import Tensor


def count_zeros(tensor: Tensor) -> int:
    """Number of zeros, of either sign."""
    if tensor.is_floating_point() and tensor.element_size() == 1:
        tensor = tensor.to(torch.float32)  # torch cannot count in float8
    return tensor.numel() - int(torch.count_nonzero(tensor))
