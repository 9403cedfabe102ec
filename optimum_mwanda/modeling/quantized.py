"""Models that are quantized in whole or in part, and models that were dequantized while they were loaded."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping

_PLAIN_LOAD = {
    "fp8": "load it as plain weights, with quantization_config=FineGrainedFP8Config(dequantize=True)",
    "mxfp4": "load it as plain weights, with quantization_config=Mxfp4Config(dequantize=True)",
}
DEQUANTIZABLE = tuple(_PLAIN_LOAD)
"""Methods of storage from which transformers loads plain weights, by their `quant_method`."""

_PLAIN = (Tensor, nn.Parameter, nn.UninitializedParameter, nn.Buffer)
_ADVICE = "prune the dense model first, then quantize it"


def check_dense(model: nn.Module) -> None:
    """Checks that no part of a model is quantized: the rest would be pruned, and the whole may not be saved again.

    Args:
        model: The model.

    Raises:
        ValueError: If a layer is quantized, or transformers has marked the model as quantized.
    """
    method = _mark(model)
    if part := quantized_part(model):
        raise ValueError(f"{part}: {_PLAIN_LOAD.get(method, _ADVICE)}.")
    if method:
        raise ValueError(
            f"The weights of the model are dense, but it is marked as quantized by {method}, and may not be saved "
            "again: model.hf_quantizer.remove_quantization_config(model) makes it an ordinary model. If its weights "
            f"really are quantized, {_ADVICE}."
        )


def quantized_part(model: nn.Module) -> str:
    """Names a quantized layer of a model, how it is quantized, and how many there are; empty if there is none."""
    found = {name: how for name, module in model.named_modules() if (how := _how_quantized(module))}
    if not found:
        return ""
    method = _mark(model)
    name, how = next(iter(found.items()))
    more = f", one of {len(found)} quantized layers" if len(found) > 1 else ""
    return f"{name!r} is quantized{f' by {method}' if method else ''} ({how}){more}"


def _mark(model: Any) -> str:
    """What transformers calls the quantization of a model; empty if there is none."""
    config = getattr(model, "config", None)
    holders = [getattr(model, "hf_quantizer", None), config, getattr(config, "text_config", None)]
    for holder in holders:
        found = getattr(holder, "quantization_config", None)
        if found is not None:
            return method_of(found)
    return method_of({"quant_method": getattr(model, "quantization_method", "")})


def method_of(quantization: Any) -> str:
    """Name of the method in a quantization config, which is an object or a plain dict."""
    known = quantization if isinstance(quantization, dict) else vars(quantization)
    method = known.get("quant_method") or ""
    return str(getattr(method, "value", method))


def _how_quantized(module: nn.Module) -> str:
    """Class of a quantized layer and the type of its weight; empty if the layer is not quantized."""
    kind = type(module)
    if kind.__module__.startswith("torch.ao.nn.quantized"):  # it has no parameters at all
        return kind.__name__
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        # Libraries keep packed weights in a parameter or a buffer; other layers keep positions and masks in buffers.
        is_weight = isinstance(tensor, nn.Parameter) or name.startswith(("weight", "qweight")) or _is_wrapped(tensor)
        if is_weight and tensor.dim() > 0 and (_is_wrapped(tensor) or _is_packed(tensor)):
            what = type(tensor).__name__ if _is_wrapped(tensor) else str(tensor.dtype)
            return f"{what}, {kind.__name__}"
    # quanto packs weights only in freeze(), and may quantize nothing but what enters a layer.
    planned = getattr(module, "weight_qtype", None) or getattr(module, "activation_qtype", None)
    return "" if planned is None else f"{getattr(planned, 'name', planned)}, {kind.__name__}"


def _is_wrapped(tensor: Tensor) -> bool:
    """Whether it is a type of its own, as those of quanto, torchao and bitsandbytes; tensors of torch are not."""
    inner = tensor.data
    return any(type(each) not in _PLAIN and not type(each).__module__.startswith("torch.") for each in (tensor, inner))


def _is_packed(tensor: Tensor) -> bool:
    return not tensor.is_complex() and (not tensor.is_floating_point() or tensor.element_size() < 2)


def forget_dequantization(model: Any) -> None:
    """Lets a model that was dequantized while it was loaded be saved as what it is now.

    transformers saves a model in the layout from which it was loaded. It has no way back from plain weights to
    quantized ones, and writes plain weights under the names of quantized ones.

    Args:
        model: A loaded model; only how it will be saved is changed. Nothing happens if it is still quantized.
    """
    conversions = getattr(model, "_weight_conversions", None)
    if not conversions or hasattr(model, "hf_quantizer") or not any(map(_dequantizes, conversions)):
        return
    own = {_key(conversion): conversion for conversion in get_model_conversion_mapping(model)}
    kept = [own.get(_key(found)) if _dequantizes(found) else found for found in conversions]
    model._weight_conversions = [conversion for conversion in kept if conversion is not None]


def _dequantizes(conversion: Any) -> bool:
    operations = getattr(conversion, "operations", None) or ()
    return any(getattr(operation, "hf_quantizer", None) is not None for operation in operations)


def _key(conversion: Any) -> tuple[Any, ...]:
    """What stays of a conversion when a dequantization is put in front of it: what it makes, and in which part."""
    return tuple(conversion.target_patterns), getattr(conversion, "scope_prefix", None)


def plain_dtype(dtype: Any) -> Any:
    """The type to dequantize to: that of the model if it has one of at least two bytes, else bfloat16."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    is_plain = isinstance(found, torch.dtype) and found.is_floating_point and found.itemsize > 1
    return found if is_plain else torch.bfloat16
