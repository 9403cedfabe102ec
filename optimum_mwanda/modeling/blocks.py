"""Finding the blocks of a model and running it through them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .interrupts import deferred_interrupts, interruptible
from .offloading import hooks_of
from .sharding import is_fully_sharded


def find_blocks(model: nn.Module, path: str | Sequence[str] | None = None) -> dict[str, nn.Module]:
    """Finds the blocks of a model: of its decoder, its encoder, or both.

    They are the members of every `nn.ModuleList` that holds only transformers' `GradientCheckpointingLayer`. If a model
    reads text and other things (its config has a text config), only the text stack counts.

    Args:
        model: Any transformers model.
        path: Module path of the list, or of several in the order in which they run, if the rule does not find them.

    Returns:
        Module path to block, in the order in which they run.

    Raises:
        ValueError: If `path` is not a list of modules, or none is found without it.
    """
    return {name: block for stack in find_stacks(model, path) for name, block in stack.items()}


def find_stacks(model: nn.Module, path: str | Sequence[str] | None = None) -> list[dict[str, nn.Module]]:
    """Finds the blocks of a model as `find_blocks` does, but list by list: an encoder apart from its decoder."""
    lists = {name: m for name, m in model.named_modules() if isinstance(m, (nn.ModuleList, nn.Sequential)) and len(m)}
    if path is not None:
        found = [path] if isinstance(path, str) else list(path)
        for name in found:
            if name not in lists:
                raise ValueError(f"blocks={name!r} is not a list of modules in this model. {_candidates(lists)}")
    else:
        text = _text_modules(model)
        found = []
        for name, members in lists.items():
            is_inside = any(name.startswith(f"{outer}.") for outer in found)
            if text(name) and not is_inside and all(isinstance(block, GradientCheckpointingLayer) for block in members):
                found.append(name)
        if not found:
            raise ValueError(f"No list of blocks was found in {type(model).__name__}. {_candidates(lists)}")
    return [{f"{name}.{index}": block for index, block in lists[name].named_children()} for name in found]


def _text_modules(model: nn.Module) -> Callable[[str], bool]:
    """Tells whether a module path is in the part of a model that reads text."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if text is config:
        return lambda _: True
    parts = [name for name, module in model.named_modules() if getattr(module, "config", None) is text and name]
    return lambda name: any(name.startswith(f"{part}.") for part in parts)


def _candidates(lists: Mapping[str, nn.Module]) -> str:
    described = ", ".join(
        f"{name!r} ({len(list(m.children()))} {type(next(m.children())).__name__})" for name, m in lists.items()
    )
    return f"Name the one that holds the blocks with blocks=; its lists are: {described or 'none'}."


def input_device(model: nn.Module) -> torch.device:
    """Device of the input embeddings, where token ids must go; of offloaded ones, where they are brought to run."""
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    device: torch.device = embeddings.weight.device
    if device.type != "meta":
        return device
    places = (getattr(hook, "execution_device", None) for hook in hooks_of(embeddings))
    return torch.device(next((place for place in places if place is not None), "cpu"))


def first(output: Any) -> Tensor:
    """The hidden states that a block or a part of it gives: they come alone or first."""
    states: Tensor = output if torch.is_tensor(output) else output[0]
    return states


class _BlocksDone(Exception):
    """Ends a forward pass after the last block."""


def run_model(model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
    """Runs a model, and gives what it gives.

    Args:
        model: The model.
        inputs: Keyword arguments of the model, of shape `(batch, sequence)`; moved to the device of the embeddings.
    """
    device = input_device(model)
    with interruptible():
        return model(**{key: tensor.to(device) for key, tensor in inputs.items()}, use_cache=False)


def run_blocks(model: nn.Module, blocks: Mapping[str, nn.Module], inputs: Mapping[str, Tensor]) -> None:
    """Runs a model up to and including the last of some blocks; the final norm and the head are not computed,
    but for FSDP2.

    Args:
        model: The model.
        blocks: Blocks, in the order in which they run.
        inputs: As for `run_model`.
    """

    def stop(*_: Any) -> None:
        raise _BlocksDone

    if is_fully_sharded(model):  # FSDP2 must see the end of a forward pass
        run_model(model, inputs)
        return
    *_, last = blocks.values()
    handle = last.register_forward_hook(stop)
    try:
        run_model(model, inputs)
    except _BlocksDone:
        return
    finally:
        handle.remove()
    raise RuntimeError(f"{type(model).__name__} finished a forward pass without running its last block.")


@contextmanager
def without_gradients(model: nn.Module) -> Iterator[None]:
    """Inside the block, no parameter needs a gradient, nor has one."""
    kept = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _, _ in kept:
            parameter.requires_grad_(False)
            parameter.grad = None
        yield
    finally:
        for parameter, flag, gradient in kept:
            parameter.requires_grad_(flag)
            parameter.grad = gradient


@contextmanager
def inference_mode(model: nn.Module) -> Iterator[None]:
    """Evaluates without dropout and gradients, and leaves every module's training flag as it was.

    Interrupts are let through only in forward passes, so that whatever is set up around them is always removed again.
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
