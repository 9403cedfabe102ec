"""Weights that accelerate keeps in memory or on disk until their layer runs."""

from typing import Any

from torch import Tensor, nn


def offloaded(module: nn.Module) -> dict[str, Tensor]:
    """The values of a module's own parameters that accelerate keeps elsewhere."""
    maps = [kept for hook in hooks_of(module) if (kept := getattr(hook, "weights_map", None)) is not None]
    names = [name for name, parameter in module.named_parameters(recurse=False) if parameter.device.type == "meta"]
    return {name: kept[name] for kept in maps for name in names}


def hooks_of(module: nn.Module) -> list[Any]:
    """What accelerate does around the calls of a module; it keeps one hook, which may stand for several."""
    hook: Any = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", (hook,)))


def offloaded_tensor(model: nn.Module, name: str) -> Tensor | None:
    """The values of a parameter or buffer that accelerate keeps elsewhere; None if they are nowhere.

    Args:
        model: The model.
        name: Name of the parameter, as in its state dict.
    """
    path, _, leaf = name.rpartition(".")
    return offloaded(model.get_submodule(path)).get(leaf)
