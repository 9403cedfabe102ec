"""Tensors that several processes share out among them (`DTensor`), as FSDP2 and tensor parallelism do."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .fused_experts import find_experts


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


def join(part: Tensor, like: Tensor) -> Tensor:
    """Gathers what each process holds of some members of a tensor, taken along its first dimension.

    Args:
        part: What this process holds of them; every process must ask for the same ones.
        like: The tensor, which is shared out along another dimension.
    """
    sharded: Any = like
    return _gathered(part, sharded.device_mesh, sharded.placements, (len(part), *like.shape[1:]))


def sum_of_parts(value: Tensor, like: Tensor) -> Tensor:
    """Adds up what each process has computed of its part of a tensor; every process must ask for it.

    Args:
        value: What this process has computed.
        like: The tensor, which may be shared out.
    """
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import DTensor, Partial, Replicate

    sharded: Any = like
    places = [Replicate() if place.is_replicate() else Partial() for place in sharded.placements]
    return DTensor.from_local(value, sharded.device_mesh, places, run_check=False).full_tensor()


@contextmanager
def own_parts(module: nn.Module) -> Iterator[None]:
    """Inside the block, the parameters of a module are plain tensors: what this process holds of them."""
    kept = {name: parameter for name, parameter in module._parameters.items() if parameter is not None}
    try:
        for name, parameter in kept.items():
            if is_sharded(parameter):
                module._parameters[name] = nn.Parameter(own_part(parameter.detach()), requires_grad=False)
        yield
    finally:
        module._parameters.update(kept)


def whole_input(x: Tensor, holder: Tensor, width: int) -> Tensor:
    """What enters a matrix over its whole width; if processes hold a slice each, every process must ask for it.

    With tensor parallelism, a matrix whose columns are shared out (`rowwise`) reads a slice in each process; one whose
    rows are shared out (`colwise`) reads everything in all of them.

    Args:
        x: What enters its module in this process, shape `(..., in)`.
        holder: The parameter that holds the matrix.
        width: Columns of the matrix.
    """
    if is_sharded(x):
        return whole(x)
    if x.shape[-1] == width or not is_sharded(holder):
        return x
    from torch.distributed.tensor import Replicate, Shard

    sharded: Any = holder
    places = [Replicate() if place.is_replicate() else Shard(x.dim() - 1) for place in sharded.placements]
    return _gathered(x, sharded.device_mesh, places, (*x.shape[:-1], width))


def _gathered(part: Tensor, mesh: Any, places: Any, shape: tuple[int, ...]) -> Tensor:
    from torch.distributed.tensor import DTensor

    stride = torch.empty(shape, device="meta").stride()
    shared = DTensor.from_local(part, mesh, places, run_check=False, shape=torch.Size(shape), stride=stride)
    return shared.full_tensor()


def shares_parameters(model: nn.Module) -> bool:
    """Whether processes hold parts of a model, so that all of them have to run it equally often."""
    return any(map(is_sharded, model.parameters())) or _has_plain_parts(model)


def check_unshared(model: nn.Module, reason: str) -> None:
    """Checks that every process has whole parameters.

    Raises:
        ValueError: If it has not, for this reason.
    """
    if shares_parameters(model):
        raise ValueError(reason)


def divides_text(model: nn.Module) -> bool:
    """Whether each process runs a model on text of its own: with whole parameters, or with FSDP2 (`fully_shard`).

    With tensor parallelism all of them run it on the same text.
    """
    if not shares_parameters(model):
        return True
    return _is_sharded_once(model) and any(map(is_fully_sharded, model.modules()))


def _is_sharded_once(model: nn.Module) -> bool:
    sharded: list[Any] = [parameter for parameter in model.parameters() if is_sharded(parameter)]
    return all(sum(not place.is_replicate() for place in each.placements) <= 1 for each in sharded)


def _has_plain_parts(model: nn.Module) -> bool:
    """Whether a model is tensor-parallel in the way of old versions of transformers: with plain tensors for parts."""
    return (getattr(model, "tp_size", None) or 1) > 1 and not any(map(is_sharded, model.parameters()))


def is_fully_sharded(module: nn.Module) -> bool:
    """Whether FSDP2 (`fully_shard`) gathers the parameters of a module when it is called."""
    return hasattr(module, "unshard") and hasattr(module, "reshard")


def reshard(model: nn.Module) -> None:
    """Lets FSDP2 let go of the parameters outside the blocks, which it keeps after a forward pass."""
    sharded: Any = model
    if is_fully_sharded(model):
        sharded.reshard()


def check_sharing(model: nn.Module, is_blockwise: bool) -> None:
    """Checks that a model of which processes hold parts can be pruned.

    Args:
        model: The model.
        is_blockwise: Whether blocks will be pruned one after the other.

    Raises:
        ValueError: If it cannot.
    """
    if not shares_parameters(model):
        return
    if _has_plain_parts(model):
        raise ValueError(
            "The model is tensor-parallel, but this version of transformers does not say which part of a matrix a "
            "process holds: update transformers, or load the model whole in each process."
        )
    is_under_fsdp = any(map(is_fully_sharded, model.modules()))
    if is_under_fsdp and not divides_text(model):
        raise ValueError(
            "The model is tensor-parallel and under FSDP2 at the same time: use one of the two, or load it whole in "
            "each process."
        )
    if is_under_fsdp and is_blockwise:
        raise ValueError(
            "calibration='sequential', refinement and reconstruction stop blocks in the middle, which FSDP2 does not "
            "allow: set calibration='dense', refinement='none' and reconstruction='none', share the model out with "
            "tensor parallelism instead, or load it whole in each process."
        )
    experts = [module for module in model.modules() if find_experts(module) is not None]
    held: list[Any] = [each for module in experts for each in module.parameters() if is_sharded(each)]
    if held and (is_under_fsdp or any(each.dim() < 3 or each.to_local().shape[0] != each.shape[0] for each in held)):
        raise ValueError(
            "The model has fused experts of which a process holds only some (FSDP2, expert parallelism): share it out "
            "with tensor parallelism, or load it whole in each process."
        )
