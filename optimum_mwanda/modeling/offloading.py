"""Weights that accelerate keeps in memory or on disk until their layer runs."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
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
    def device(self) -> torch.device:
        """Where it goes when its module runs."""
        device = self.hook.execution_device
        return torch.device("cpu" if device is None else device)

    @property
    def place(self) -> tuple[dict[str, Any], str] | None:
        """For values on disk: the index of files and the key in it; None for values in memory."""
        store, key = self._store
        return (store.index, key) if hasattr(store, "index") and key not in store.state_dict else None

    @property
    def folder(self) -> str | None:
        """For values on disk: the folder that the model was given for them."""
        folder: str | None = getattr(self._store[0], "save_folder", None)
        return folder

    @property
    def _store(self) -> tuple[Any, str]:
        """What holds the values of all modules, and the name of this tensor there."""
        store, key = self.hook.weights_map, self.path
        while hasattr(store, "prefix"):  # accelerate's view of the tensors below a module
            store, key = store.dataset, f"{store.prefix}{key}"
        return store, key


def offloaded_tensors(module: nn.Module) -> Iterator[OffloadedTensor]:
    """What accelerate keeps elsewhere of a module and everything in it, a tied tensor once per place."""
    for part in module.modules():
        yield from _brought_by(part)


def offloaded(module: nn.Module) -> dict[str, OffloadedTensor]:
    """What accelerate keeps elsewhere of a module's own parameters, by their names; nothing is read."""
    return {tensor.name: tensor for tensor in _brought_by(module) if tensor.module is module}


def offloaded_tensor(model: nn.Module, name: str) -> Tensor | None:
    """The values of a parameter or buffer that accelerate keeps elsewhere; None if they are nowhere.

    Args:
        model: The model.
        name: Name of the parameter, as in its state dict.
    """
    path, _, leaf = name.rpartition(".")
    found = offloaded(model.get_submodule(path)).get(leaf)
    return None if found is None else found.value


def tied_keys(index: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Key of every tied tensor to all the keys that stand for it, out of what says in which file each tensor is."""
    keys: dict[tuple[Any, Any], list[str]] = {}
    for key, entry in index.items():
        if (file := entry.get("safetensors_file")) is not None:
            keys.setdefault((file, entry.get("weight_name", key)), []).append(key)
    return {key: found for found in keys.values() if len(found) > 1 for key in found}


def hooks_of(module: nn.Module) -> list[Any]:
    """What accelerate does around the calls of a module; it keeps one hook, which may stand for several."""
    hook: Any = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", (hook,)))


def _brought_by(module: nn.Module) -> Iterator[OffloadedTensor]:
    """What the hooks of one module bring."""
    for hook in hooks_of(module):
        if not getattr(hook, "offload", False) or hook.weights_map is None:
            continue
        for path, tensor in _tensors(module, hook):
            if tensor.device.type == "meta":
                owner, _, name = path.rpartition(".")
                yield OffloadedTensor(module.get_submodule(owner), name, hook, path)


def _tensors(module: nn.Module, hook: Any) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=hook.place_submodules)
    if hook.offload_buffers:
        yield from module.named_buffers(recurse=hook.place_submodules)
