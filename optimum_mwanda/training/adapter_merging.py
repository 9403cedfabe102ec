"""Merging an adapter into a pruned model without losing its zeros."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..modeling.interrupts import deferred_interrupts
from ..record.matrices import matrix_attributes
from .adapted_matrices import AdaptedMatrices, find_adapted
from .adapter_updates import adapter_update, adapters_in, wide
from .merge_report import MergedMatrix, MergeReport
from .update_maths import keep_zeros, update_norms

logger = logging.getLogger(__name__)


@torch.no_grad()
def merge_preserving_masks(peft_model: nn.Module) -> tuple[Any, MergeReport]:
    """Merges the active adapters into a pruned model, and keeps every pruned weight at zero.

    What is not pruned becomes what peft's `merge_and_unload` makes of it. If the adapters are masked by
    `mask_adapters`, they change nothing else, and the merge is exact. Otherwise a part of what they learned is lost,
    and the report says how much. A weight that is not pruned but happens to become zero gets the smallest normal number
    of its type, so that the record stays true.

    Args:
        peft_model: A `PeftModel` over a pruned model, perhaps wrapped. As with `merge_and_unload` its weights go over
            into the merged model, and it cannot be used any more. Both the old and the new values of changed matrices
            are in memory until all are merged.

    Returns:
        The plain model with its sparsity record, and the report.

    Raises:
        TypeError: If it is not a `PeftModel`.
        ValueError: If the model under the adapters is dense, quantized, or not as its sparsity record says, or the
            adapters cannot be merged: other types, merged already, with values that are not finite. Nothing is changed
            then, nor by an interrupt.
    """
    found = find_adapted(peft_model)
    report = MergeReport(tuple(_measure(found)))
    with unchanged_on_error(found.model):
        before = {name: parameter.data for name, parameter in found.pruned.items()}
        model = found.model.merge_and_unload(safe_merge=True)
        places = matrix_attributes(model)
        for name, weight in before.items():
            parameter = getattr(*places[name])
            if parameter.data_ptr() != weight.data_ptr():
                parameter.data = keep_zeros(parameter.data, weight)
    return model, report


@contextmanager
def unchanged_on_error(model: Any) -> Iterator[None]:
    """Puts a `PeftModel` back together if it cannot be unloaded to the end.

    Args:
        model: The model. Inside, weights may be replaced but not changed in place.
    """
    base = model.get_base_model()
    children = [(module, dict(module._modules)) for module in model.modules()]
    lists = [vars(module)["merged_adapters"] for module in model.modules() if "merged_adapters" in vars(module)]
    merged = [(names, list(names)) for names in lists]
    data = [(parameter, parameter.data) for parameter in model.parameters()]
    configs, is_tied = base.peft_config, getattr(base.config, "tie_word_embeddings", None)
    try:
        yield
    except BaseException:
        with deferred_interrupts():
            for names, earlier in merged:
                names[:] = earlier
            for module, modules in children:
                module._modules.update(modules)
            for parameter, values in data:
                parameter.data = values
            base.peft_config = configs
            if is_tied is not None:
                base.config.tie_word_embeddings = is_tied
        logger.warning("The adapters were not merged; the model is as it was before.")
        raise


def _measure(found: AdaptedMatrices) -> Iterator[MergedMatrix]:
    for name, weight in found.pruned.items():
        if name in found.layers:
            update = _merged_update(name, found.layers[name], found.model.active_adapters)
        elif name in found.copies:
            update = wide(found.copies[name]) - wide(weight)
        else:
            continue
        norms = update_norms(update, weight)
        if not all(map(math.isfinite, norms)):
            raise ValueError(
                f"What the adapters add to {name!r} is not finite: their training diverged. Load an earlier checkpoint "
                "of the adapters."
            )
        yield MergedMatrix(name, *norms)


def _merged_update(name: str, layer: Any, active: list[str]) -> Tensor:
    from .masked_variant import MaskedVariant

    adapters = adapters_in(layer, active)
    if len(adapters) > 1 and any(adapter in layer.lora_magnitude_vector for adapter in adapters):
        raise ValueError(
            f"Several adapters are active on {name!r}, {', '.join(adapters)}, and what DoRA adds depends on the "
            "others: choose one of them with peft_model.set_adapter."
        )
    updates = [
        adapter_update(layer, adapter, isinstance(layer.lora_variant.get(adapter), MaskedVariant))
        for adapter in adapters
    ]
    return torch.stack(updates).sum(0) if len(updates) > 1 else updates[0]
