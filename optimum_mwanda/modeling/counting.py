"""Counting zeros."""

import numpy as np
import torch
from torch import Tensor

from .bits import as_integers, cached_parts
from .sharding import own_part, sum_of_parts


def count_zeros(tensor: Tensor) -> int:
    """Number of zeros, of either sign; of a tensor that is shared out, every process must ask for it."""
    part = own_part(tensor)
    return int(sum_of_parts(part.numel() - _count_nonzeros(part), tensor))


def _count_nonzeros(values: Tensor) -> Tensor:
    if values.is_floating_point() and values.element_size() == 1:
        values = values.to(torch.float32)  # torch cannot count in float8
    if values.device.type != "cpu" or not values.is_floating_point():
        return torch.count_nonzero(values)
    values = values if values.dim() else values[None]
    bits = as_integers(values).numpy()
    # numpy counts with vector instructions; shifting drops the sign.
    return torch.tensor(sum(np.count_nonzero(bits[part] << 1) for part in cached_parts(values)))
