"""Telling models apart."""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .offloading import offloaded
from .sharding import whole

VALUES = 16


def model_fingerprint(model: nn.Module) -> str:
    """SHA-256 over the name, shape and dtype of every parameter and 16 evenly spaced values of it.

    It takes almost no time and tells apart models that were trained differently; it does not protect against forgery.
    It does not depend on where the values are: values that accelerate has offloaded are read from there, and what
    several processes share out is gathered.
    """
    digest = hashlib.sha256()
    for name, parameter in _parameters(model):
        digest.update(f"{name}\0{tuple(parameter.shape)}\0{parameter.dtype}\0".encode())
        if parameter.device.type != "meta":
            step = max(1, parameter.numel() // VALUES)
            sample = whole(parameter.detach()).flatten()[::step][:VALUES]
            digest.update(sample.to("cpu", torch.float32, copy=True).numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def _parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter once, in the order of the model; also tied parameters, which offloading separates."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        elsewhere = offloaded(module)
        for name, parameter in module.named_parameters(path, recurse=False):
            if parameter.device.type == "meta" and name in tied:
                continue
            if id(parameter) not in seen:
                seen.add(id(parameter))
                found = elsewhere.get(name.rpartition(".")[2])
                yield name, parameter if found is None else found.value
