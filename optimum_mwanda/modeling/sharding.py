"""Tensors that several processes share out among them (`DTensor`), as FSDP2 and tensor parallelism do."""

from typing import Any

from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether a process holds only its part of a tensor."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor; of a shared one it is gathered, so every process must ask for it."""
    sharded: Any = tensor
    return sharded.full_tensor() if is_sharded(tensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, without a copy."""
    sharded: Any = tensor
    return sharded.to_local() if is_sharded(tensor) else tensor


def share_out(tensor: Tensor, like: Tensor) -> Tensor:
    """The part of a whole tensor that this process holds of another one of the same shape.

    Args:
        tensor: The same on every process.
        like: A tensor that may be shared out.
    """
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = like
    return distribute_tensor(tensor, sharded.device_mesh, sharded.placements, src_data_rank=None).to_local()
