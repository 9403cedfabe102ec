"""What a LoRA layer of peft adds to the matrix under it."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from .update_maths import dora_update, masked


def adapters_in(layer: Any, adapters: Collection[str]) -> list[str]:
    """Those of some adapters that a LoRA layer has."""
    return [name for name in adapters if name in layer.lora_A]


def adapted_parameter(layer: Any) -> Any:
    """The parameter under a LoRA layer; None if it is not one of its own."""
    return getattr(layer.get_base_layer(), getattr(layer, "parameter_name", "weight"), None)


def adapter_update(layer: Any, adapter: str, is_masked: bool) -> Tensor:
    """What a LoRA or DoRA adapter adds to the matrix under it, as autograd sees it.

    Args:
        layer: A LoRA layer of `AdaptedMatrices`.
        adapter: Name of the adapter.
        is_masked: Whether the product of its two matrices is masked; DoRA takes the norms of rows after that.

    Returns:
        The shape of the parameter, in float32 or better whatever autocast says, because it is added to weights.
    """
    if is_on_parameter(layer):
        return wide(layer.get_delta_weight(adapter))
    weight = adapted_parameter(layer).detach()
    with torch.autocast(weight.device.type, enabled=False):
        first, second = wide(layer.lora_A[adapter].weight), wide(layer.lora_B[adapter].weight)
        weight = weight.T if layer.fan_in_fan_out else weight
        update: Tensor = layer.scaling[adapter] * (second @ first)
        if is_masked:
            update = masked(update, weight)
        if adapter in layer.lora_magnitude_vector:
            update = dora_update(wide(weight), update, wide(layer.lora_magnitude_vector[adapter].weight))
    return update.T if layer.fan_in_fan_out else update


def is_on_parameter(layer: Any) -> bool:
    """Whether a LoRA layer is on a single parameter, as for fused experts; it knows neither DoRA nor our masks."""
    return hasattr(layer, "parameter_name")


def wide(tensor: Tensor) -> Tensor:
    """A tensor in float32 or better."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
