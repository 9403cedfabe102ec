"""The pruned matrices under an adapter of peft, and whether their masks can be kept."""

import dataclasses
from collections.abc import Collection
from typing import Any, TypeVar

from torch import nn

from ..modeling.quantized import quantized_part
from ..modeling.sharding import check_unshared
from ..record.matrices import matrix_attributes
from ..record.verification import match_names, sparsity_record, verify_sparsity
from ..utils import abridged
from .adapter_updates import adapted_parameter, adapters_in
from .pruned_entries import bare_model

M = TypeVar("M", bound=nn.Module)


@dataclasses.dataclass(frozen=True)
class AdaptedMatrices:
    """What adapters do to the pruned matrices of a model; names are those of the plain model.

    Attributes:
        model: The `PeftModel`, out of its wrappers.
        pruned: Name of every pruned matrix to its parameter, which no adapter has changed.
        layers: Name of a pruned matrix to the LoRA layer that adapts it.
        copies: Name of a pruned matrix to the parameter that was trained in its place, by `modules_to_save`.
    """

    model: Any
    pruned: dict[str, nn.Parameter]
    layers: dict[str, Any]
    copies: dict[str, nn.Parameter]


def find_adapted(peft_model: nn.Module, adapters: Collection[str] | None = None) -> AdaptedMatrices:
    """Finds the pruned matrices under some adapters.

    Args:
        peft_model: A `PeftModel`, perhaps wrapped, over a pruned model.
        adapters: Names of adapters. None: those that are active.

    Raises:
        TypeError: If it is not a `PeftModel`.
        ValueError: If the masks of the model are not known, or cannot be kept with these adapters.
    """
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from peft.utils import ModulesToSaveWrapper

    model: Any = bare_model(peft_model) if isinstance(peft_model, nn.Module) else peft_model
    if not isinstance(model, PeftModel):
        raise TypeError(
            f"peft_model is a {type(model).__name__}: give the PeftModel that peft's get_peft_model or "
            "PeftModel.from_pretrained returns."
        )
    adapters = model.active_adapters if adapters is None else adapters
    _check_adapters(model, adapters)
    base = model.get_base_model()
    pruned = _pruned_parameters(plain_view(base))
    names = {id(parameter): name for name, parameter in pruned.items()}
    layers: dict[str, Any] = {}
    copies: dict[str, nn.Parameter] = {}
    for module in base.modules():
        if isinstance(module, LoraLayer):
            name = names.get(id(adapted_parameter(module)))
            if name is not None and adapters_in(module, adapters):
                if name in layers:
                    raise ValueError(f"Several layers of the adapter share {name!r}, so they cannot be merged into it.")
                _check_layer(name, module, adapters)
                layers[name] = module
        elif isinstance(module, ModulesToSaveWrapper) and module.active_adapters:
            trained = dict(module.modules_to_save[module.active_adapters[0]].named_parameters())
            found = {names.get(id(each)): path for path, each in module.original_module.named_parameters()}
            copies |= {name: trained[path] for name, path in found.items() if name is not None and path in trained}
    return AdaptedMatrices(model, pruned, layers, copies)


def plain_view(module: M) -> M:
    """A model as it was before adapters were put in, with the same parameters; the model itself is not changed."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    inner: Any = module
    while isinstance(inner, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
        inner = inner.get_base_layer() if isinstance(inner, BaseTunerLayer) else inner.original_module
    view: M = inner.__new__(type(inner))
    view.__dict__ = {
        **inner.__dict__,
        "_modules": {name: None if child is None else plain_view(child) for name, child in inner._modules.items()},
    }
    return view


def _check_adapters(model: Any, adapters: Collection[str]) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name in adapters:
        kind = model.peft_config[name].peft_type
        kind = str(getattr(kind, "value", kind))
        if kind != "LORA":
            raise ValueError(
                f"The adapter {name!r} is of type {kind}, for which masks cannot be kept: train a LoRA adapter, which "
                "may use DoRA or rsLoRA."
            )
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and module.merged:
            raise ValueError(
                f"The adapters {abridged(map(repr, module.merged_adapters))} are merged into the weights already: call "
                "peft_model.unmerge_adapter(), or load the pruned checkpoint and the adapters again."
            )
    check_unshared(
        model,
        "The weights are shared out among processes: save the adapter, and load it over the pruned checkpoint in "
        "one process.",
    )


def _pruned_parameters(base: nn.Module) -> dict[str, nn.Parameter]:
    if part := quantized_part(base):
        raise ValueError(
            f"The model under the adapter is not plain weights, so zeros cannot be kept in it: {part}. Load the pruned "
            "checkpoint without quantization, and the adapter over it with PeftModel.from_pretrained."
        )
    record = sparsity_record(base)
    if record is None:
        raise ValueError(
            f"The model under the adapter, {type(base).__name__}, has no sparsity record, so there are no masks to "
            "keep: merge the adapter of a dense model with merge_and_unload(), and load that of a pruned model over "
            "its checkpoint."
        )
    verification = verify_sparsity(base)
    if verification.lost or verification.missing or verification.reshaped:
        raise ValueError(
            "The weights under the adapter are not those that their sparsity record describes, so their zeros are not "
            "its masks: load the pruned checkpoint again, and the adapter over it. PiSSA and other initialisations "
            f"that change the weights under an adapter cannot be used. {verification}"
        )
    places = matrix_attributes(base)
    recorded = set(match_names(record.matrices, places).values())
    return {name: getattr(*place) for name, place in places.items() if name in recorded}


def _check_layer(name: str, layer: Any, adapters: Collection[str]) -> None:
    from peft.tuners.lora import Linear, ParamWrapper
    from peft.tuners.lora.variants import DoraLinearVariant

    from .masked_variant import MaskedVariant

    if not isinstance(layer, (Linear, ParamWrapper)):
        raise ValueError(
            f"The adapter on {name!r} is of the class {type(layer).__name__}, for which masks cannot be kept: leave it "
            "out of target_modules."
        )
    for adapter in adapters_in(layer, adapters):
        variant = layer.lora_variant.get(adapter)
        if not isinstance(variant, (DoraLinearVariant, MaskedVariant, type(None))):
            raise ValueError(
                f"The adapter {adapter!r} on {name!r} is computed by {type(variant).__name__} of peft: masks can be "
                "kept for LoRA, DoRA and rsLoRA."
            )
