"""What is left of a pruned matrix in a quantized model: its values, its zeros, and the bytes that it takes."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn


def response_to_identity(model: nn.Module, name: str, width: int) -> Tensor:
    """The matrix that a layer multiplies with, of shape `(out, in)`, whatever format it is stored in.

    The layer gets the identity as its input. Each output is one dequantized value plus zeros, so this is exact for
    weight-only schemes, in the type that the layer computes in. A scheme that also quantizes what enters the layer may
    round other values, but never a zero.

    Args:
        model: A quantized model.
        name: Module path of the layer.
        width: Inputs of the layer.
    """
    layer: Any = model.get_submodule(name)
    bias = getattr(layer, "bias", None)
    if bias is not None:  # a sum with the bias would round
        layer.bias = None
    try:
        with torch.inference_mode():
            matrix: Tensor = layer(torch.eye(width, dtype=model.dtype)).T
    finally:
        if bias is not None:
            layer.bias = bias
    return matrix


def bytes_in_memory(model: nn.Module, name: str) -> int:
    """Bytes of everything that a layer keeps but for its bias: packed weights, scales, zero points."""
    state = model.get_submodule(name).state_dict()
    return count_bytes(tensor for key, tensor in state.items() if key != "bias")


def bytes_in_files(model: Any, name: str) -> int:
    """The same, of the folder that the model was loaded from: some tools repack or unpack weights when they load."""
    total = 0
    for path in sorted(Path(model.name_or_path).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            keys = [key for key in file.keys() if key.startswith(f"{name}.") and key != f"{name}.bias"]  # noqa: SIM118
            total += count_bytes(map(file.get_tensor, keys))
    return total


def count_bytes(tensors: Iterable[Any]) -> int:
    """Bytes of tensors; those of a tensor subclass are those of the plain tensors in it."""
    plain = (part for tensor in tensors if isinstance(tensor, Tensor) for part in _plain_parts(tensor))
    return sum(part.numel() * part.element_size() for part in plain)


def _plain_parts(tensor: Tensor) -> Iterator[Tensor]:
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from _plain_parts(getattr(tensor, name))
