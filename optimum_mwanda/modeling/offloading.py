"""Weights that accelerate keeps in memory or on disk until their layer runs."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn


class OffloadedTensor(NamedTuple):
    """A parameter or buffer that accelerate keeps elsewhere.

    Attributes:
        module: The module that it belongs to.
        name: Its name in that module.
        hook: accelerate's hook, which brings it to the module and takes it away again.
        path: Its name below the module of the hook.
    """

    module: nn.Module
    name: str
    hook: Any
    path: str

    @property
    def value(self) -> Tensor:
        """Its values, where accelerate keeps them; of a file, they are read now."""
        value: Tensor = self.hook.weights_map[self.path]
        return value

    @property
    def place(self) -> tuple[dict[str, Any], str] | None:
        """For values on disk: the index of files and the key in it; None for values in memory."""
        kept, key = self.hook.weights_map, self.path
        while hasattr(kept, "prefix"):  # accelerate's view of the tensors below a module
            kept, key = kept.dataset, f"{kept.prefix}{key}"
        return (kept.index, key) if hasattr(kept, "index") and key not in kept.state_dict else None

    @property
    def folder(self) -> str | None:
        """For values on disk: the folder that the model was given for them."""
        kept = self.hook.weights_map
        while hasattr(kept, "prefix"):
            kept = kept.dataset
        folder: str | None = getattr(kept, "save_folder", None)
        return folder


def offloaded_tensors(module: nn.Module) -> Iterator[OffloadedTensor]:
    """What accelerate keeps elsewhere of a module and everything in it, a tied tensor once per place."""
    for part in module.modules():
        for hook in hooks_of(part):
            if not getattr(hook, "offload", False) or hook.weights_map is None:
                continue
            for path, tensor in _own(part, hook):
                if tensor.device.type == "meta":
                    owner, _, name = path.rpartition(".")
                    yield OffloadedTensor(part.get_submodule(owner), name, hook, path)


def _own(module: nn.Module, hook: Any) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=hook.place_submodules)
    if hook.offload_buffers:
        yield from module.named_buffers(recurse=hook.place_submodules)


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
