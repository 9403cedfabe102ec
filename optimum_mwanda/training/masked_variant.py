"""LoRA and DoRA whose update is masked in the forward pass, as a variant of peft's LoRA layers.

peft asks, for each layer and adapter, an object to compute and merge what the adapter adds, if there is one: nothing of
peft has to be replaced. This module imports peft.
"""

from typing import Any

import torch
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from .adapter_updates import adapter_update
from .update_maths import keep_zeros


class MaskedVariant(LoraVariant):
    """One adapter of one layer, which changes only entries of the matrix that are not zero.

    Args:
        replaced: What peft used before; None for plain LoRA.
    """

    def __init__(self, replaced: LoraVariant | None) -> None:
        self.replaced = replaced

    def supports_lora_conversion(self) -> bool:
        """A masked update does not have a low rank."""
        return False

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """Adds what the adapter makes of `x` to the result of the matrix under it."""
        x = module.lora_dropout[active_adapter](x)
        if not torch.is_grad_enabled():
            return result + _apply(module, active_adapter, x)
        # The masked update is as large as the matrix: for gradients it is computed again rather than kept.
        changed: Tensor = checkpoint(_apply, module, active_adapter, x, use_reentrant=False, preserve_rng_state=False)
        return result + changed

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The weight with the adapter in it."""
        if active_adapter in module.lora_magnitude_vector and module.merged_adapters:
            raise RuntimeError(
                f"DoRA refers to the weight without other adapters, but {module.merged_adapters} are merged already: "
                "merge one adapter at a time."
            )
        module._cache_store(_before(active_adapter), module.get_base_layer().weight.data)
        update = adapter_update(module, active_adapter, is_masked=True).detach()
        return keep_zeros((orig_weight + update).to(orig_weight.dtype), orig_weight)

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        """Puts the adapter into the weight."""
        orig_weight.data = MaskedVariant.merge_safe(module, active_adapter, orig_weight.data)

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The weight as it was before the adapter was merged, to the bit."""
        before: Tensor = module._cache_pop(_before(active_adapter))
        return before.to(orig_weight)


def _before(adapter: str) -> str:
    return f"{adapter}-before_masked_merge"


def _apply(module: Any, adapter: str, x: Tensor) -> Tensor:
    update = adapter_update(module, adapter, is_masked=True).to(x.dtype)
    bias = module.scaling[adapter] * module.lora_B[adapter].bias if module.lora_bias[adapter] else None
    return linear(x, update.T if module.fan_in_fan_out else update, None if bias is None else bias.to(x.dtype))
