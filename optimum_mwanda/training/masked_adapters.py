"""Training an adapter that changes no pruned weight."""

import logging
from typing import Any

from torch import nn

from ..record.verification import sparsity_record
from ..utils import abridged
from .adapted_matrices import find_adapted
from .adapter_updates import is_on_parameter
from .pruned_entries import bare_model

logger = logging.getLogger(__name__)


class MaskedAdapters:
    """The layers whose adapters `mask_adapters` masks; `close` takes it back.

    Args:
        layers: Name of a pruned matrix to the LoRA layer of peft on it.
    """

    def __init__(self, layers: dict[str, Any]) -> None:
        from .masked_variant import MaskedVariant

        self.layers = layers
        for layer in layers.values():
            for adapter in layer.lora_A:
                variant = layer.lora_variant.get(adapter)
                if not isinstance(variant, MaskedVariant):
                    layer.lora_variant[adapter] = MaskedVariant(variant)

    def close(self) -> None:
        """Lets the adapters change all weights again; what they have learned stays.

        Raises:
            ValueError: If an adapter is merged. Nothing is changed then.
        """
        from .masked_variant import MaskedVariant

        if merged := [name for name, layer in self.layers.items() if layer.merged]:
            raise ValueError(
                f"Adapters are merged into {abridged(map(repr, merged))}: call peft_model.unmerge_adapter() first."
            )
        for layer in self.layers.values():
            for adapter, variant in list(layer.lora_variant.items()):
                if isinstance(variant, MaskedVariant):
                    del layer.lora_variant[adapter]
                    if variant.replaced is not None:
                        layer.lora_variant[adapter] = variant.replaced


def warn_of_unmasked_adapters(model: nn.Module) -> None:
    """Warns if merging the adapters of a pruned model would cost what they add to pruned weights."""
    inside = bare_model(model)
    if not hasattr(inside, "peft_config") or sparsity_record(inside) is None:
        return
    from .masked_variant import MaskedVariant

    try:
        variants = [variant for layer in find_adapted(model).layers.values() for variant in variants_of(layer)]
    except (TypeError, ValueError) as error:
        logger.warning("The masks are not kept in the adapters of this model. %s", error)
        return
    if not all(isinstance(variant, MaskedVariant) for variant in variants):
        logger.warning(
            "The adapters of this model are not masked, so what they add to pruned weights will be lost when they are "
            "merged: call mask_adapters(peft_model) before the training."
        )


def variants_of(layer: Any) -> list[Any]:
    """How the active adapters of a layer of peft are computed; None as peft does it."""
    return [layer.lora_variant.get(adapter) for adapter in layer.active_adapters if adapter in layer.lora_A]


def mask_adapters(peft_model: nn.Module) -> MaskedAdapters:
    """Masks what LoRA, DoRA and rsLoRA adapters add to pruned matrices, in the forward pass and in merges.

    Entries that are zero in the matrix stay zero, and give the adapter no gradient, so that merging it afterwards is
    exact. All adapters that the model has now are masked. Saved adapters do not say that they were masked: call this
    again after loading one, before it is trained further, measured or merged, and after adding one.

    The masks are the zeros of the matrices themselves and take no memory, but the matrices under the adapter must not
    be trained meanwhile.

    Args:
        peft_model: A `PeftModel` over a pruned model, before or after it is wrapped.

    Returns:
        What was masked; its `close()` takes it back.

    Raises:
        TypeError: If it is not a `PeftModel`.
        ValueError: If the model under the adapter is dense, quantized, or not as its sparsity record says; if the
            adapter is of another type, adapts no pruned matrix, or trains one in a way that cannot be masked. Nothing
            is changed then.
    """
    inside = bare_model(peft_model) if isinstance(peft_model, nn.Module) else None
    found = find_adapted(peft_model, list(getattr(inside, "peft_config", {})))
    if found.copies:
        raise ValueError(
            f"modules_to_save trains pruned matrices as a whole, {abridged(map(repr, found.copies))}, and there is no "
            "adapter on them to mask: name them in target_modules, or mask them with merge_preserving_masks at the end."
        )
    if fused := [name for name, layer in found.layers.items() if is_on_parameter(layer)]:
        raise ValueError(
            f"Adapters on single parameters, {abridged(map(repr, fused))}, cannot be masked while they are trained: "
            "leave them out of target_parameters, or mask them with merge_preserving_masks at the end."
        )
    if not found.layers:
        raise ValueError(
            f"The adapter is on none of the pruned matrices, {abridged(map(repr, found.pruned))}: choose "
            "target_modules among them. An adapter on other modules needs no masks."
        )
    return MaskedAdapters(found.layers)
