"""Finding the blocks of a model and running it through them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .interrupts import deferred_interrupts, interruptible


def find_blocks(model: nn.Module, path: str | None = None) -> dict[str, nn.Module]:
    """Finds the decoder blocks of a model.

    They are the one `nn.ModuleList` whose members all derive from transformers' `GradientCheckpointingLayer`.

    Args:
        model: Any transformers model.
        path: Module path of the list, where the rule does not find it.

    Returns:
        Module path to block, in the order in which they run.

    Raises:
        ValueError: If `path` is no list of modules, or none or several lists are found without it.
    """
    lists = {name: m for name, m in model.named_modules() if isinstance(m, (nn.ModuleList, nn.Sequential)) and len(m)}
    if path is not None:
        if path not in lists:
            raise ValueError(f"blocks={path!r} is no list of modules of this model. {_candidates(lists)}")
        found = [path]
    else:
        found = [n for n, m in lists.items() if all(isinstance(block, GradientCheckpointingLayer) for block in m)]
        if not found:
            raise ValueError(f"No list of blocks was found in {type(model).__name__}. {_candidates(lists)}")
        if len(found) > 1:
            raise ValueError(
                f"{type(model).__name__} has several lists of blocks, and one is pruned at a time: name it with "
                f"blocks=, one of {', '.join(map(repr, found))}."
            )
    return {f"{found[0]}.{index}": block for index, block in lists[found[0]].named_children()}


def _candidates(lists: Mapping[str, nn.Module]) -> str:
    described = ", ".join(
        f"{name!r} ({len(list(m.children()))} {type(next(m.children())).__name__})" for name, m in lists.items()
    )
    return f"Name the one that holds the blocks with blocks=; its lists are: {described or 'none'}."


def input_device(model: nn.Module) -> torch.device:
    """Device of the input embeddings, to which token ids have to go."""
    return model.get_input_embeddings().weight.device  # type: ignore[operator, no-any-return]


class _BlocksDone(Exception):
    """Ends a forward pass after the last block."""


def run_blocks(model: nn.Module, blocks: dict[str, nn.Module], input_ids: Tensor) -> None:
    """Runs a model up to and including its last block; the final norm and the head are never computed.

    Args:
        model: The model.
        blocks: Its blocks.
        input_ids: Shape `(batch, sequence)`; moved to the device of the embeddings.
    """

    def stop(*_: Any) -> None:
        raise _BlocksDone

    *_, last = blocks.values()
    handle = last.register_forward_hook(stop)
    try:
        with interruptible():
            model(input_ids=input_ids.to(input_device(model)), use_cache=False)
    except _BlocksDone:
        return
    finally:
        handle.remove()
    raise RuntimeError(f"{type(model).__name__} finished a forward pass without running its last block.")


@contextmanager
def inference_mode(model: nn.Module) -> Iterator[None]:
    """Evaluates without dropout and gradients, and leaves every module's training flag as it was.

    Interrupts are let through in forward passes only, so that what was set up for them is always taken down again.
    """
    flags = [(module, module.training) for module in model.modules()]
    with deferred_interrupts():
        try:
            model.eval()
            with torch.no_grad():
                yield
        finally:
            for module, training in flags:
                module.training = training
