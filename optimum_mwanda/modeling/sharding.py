"""Tensors that several processes share out among them (`DTensor`), as FSDP2 and tensor parallelism do."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

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


@contextmanager
def gathered(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside the block, the parameters of some modules are whole copies, to be read; every process must enter it."""
    kept: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for module in dict.fromkeys(part for each in modules for part in each.modules()):
            for name, parameter in module.named_parameters(recurse=False):
                if is_sharded(parameter):
                    copy = nn.Parameter(whole(parameter.detach()), requires_grad=False)
                    kept.append((module, name, parameter))
                    module._parameters[name] = copy
        yield
    finally:
        for module, name, parameter in kept:
            module._parameters[name] = parameter


def shares_parameters(model: nn.Module) -> bool:
    """Whether processes hold parts of a model, so that all of them have to run it equally often."""
    return any(map(is_sharded, model.parameters()))


def divides_text(model: nn.Module) -> bool:
    """Whether each process runs a model on text of its own: with whole parameters, or with FSDP2 (`fully_shard`).

    With tensor parallelism all of them run it on the same text.
    """
    sharded: list[Any] = [parameter for parameter in model.parameters() if is_sharded(parameter)]
    if not sharded:
        return True
    once = all(sum(place.is_shard() for place in each.placements) == 1 for each in sharded)
    return once and any(map(is_fully_sharded, model.modules()))


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
    if not divides_text(model):
        raise ValueError(
            "The model is tensor-parallel, so that a process sees a part of what enters a matrix: load it whole in "
            "each process, or share it out with fully_shard (FSDP2)."
        )
    if is_blockwise:
        raise ValueError(
            "calibration='sequential', refinement and reconstruction stop blocks in the middle, which FSDP2 does not "
            "allow: set calibration='dense', refinement='none' and reconstruction='none', or load the model whole in "
            "each process."
        )
    if any(find_experts(module) is not None for module in model.modules()):
        raise ValueError(
            "The model has fused experts that FSDP2 shares out, so that a process has only some of them: load it whole "
            "in each process."
        )
