"""The tools: one function each that quantizes a pruned checkpoint. Every tool is imported where it is used."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from reading import bytes_in_memory, count_bytes
from rounding import round_layers
from source import Source
from torch import Tensor, nn

GROUP = 32
"""Values that share a scale in four bits: the largest group that fits the sample model in all tools."""


def rounded(source: Source, bits: int, zero: str, group: int | None = None) -> Any:
    """Rounds to the nearest level with plain torch."""
    return round_layers(source.load(), list(source.masks), bits, zero, group)


def torchao(source: Source, config: str, mapping: str = "") -> Any:
    """Quantizes with the config of torchao that is meant."""
    from torchao import quantization as ao
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

    configs: dict[str, Callable[[], Any]] = {
        "int8": ao.Int8WeightOnlyConfig,
        "int4": lambda: ao.Int4WeightOnlyConfig(group_size=GROUP),
        "int4 prototype": lambda: PrototypeInt4WeightOnlyConfig(group_size=GROUP),
        "intx": lambda: ao.IntxWeightOnlyConfig(torch.int4, ao.PerGroup(GROUP), ao.MappingType[mapping]),
    }
    model = source.load()
    ao.quantize_(model, configs[config](), lambda module, path: path in source.masks)
    return model


def quanto(source: Source, weights: str, zeropoint: bool | None = None) -> Any:
    """Quantizes with optimum-quanto."""
    from optimum.quanto import MaxOptimizer, freeze, quantize

    optimizer: Any = None if zeropoint is None else partial(MaxOptimizer(), zeropoint=zeropoint)
    model = source.load()
    quantize(model, weights=weights, optimizer=optimizer, include=list(source.masks))
    freeze(model)
    return model


def hqq(source: Source, bits: int, **settings: Any) -> Any:
    """Quantizes with hqq, whose integration in transformers 5 cannot quantize while it loads."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    model = source.load()
    for name in source.masks:
        config = BaseQuantizeConfig(nbits=bits, group_size=GROUP, axis=1)
        config["weight_quant_params"].update(settings)
        layer = HQQLinear(model.get_submodule(name), config, compute_dtype=model.dtype, device="cpu")
        model.set_submodule(name, layer)
    return model


def bitsandbytes(source: Source, **options: Any) -> Any:
    """Quantizes with bitsandbytes while transformers loads the model."""
    from transformers import BitsAndBytesConfig

    model = source.load(quantization_config=BitsAndBytesConfig(**options), device_map="cpu")
    for name, mask in source.masks.items():
        rows, columns = mask.shape
        if options.get("load_in_4bit") and (rows % 32 or columns % 64):  # the fast format of some CPUs needs these
            model.get_submodule(name).support_avx512bf16_for_cpu = False
    return model


def optimum_gptq(source: Source, sym: bool) -> Any:
    """Quantizes with optimum's GPTQ, the way of `GPTQConfig` of transformers."""
    from transformers import GPTQConfig

    config = GPTQConfig(bits=4, group_size=GROUP, sym=sym, dataset=source.texts, tokenizer=source.tokenizer)
    return source.reload(source.load(quantization_config=config))


def gptqmodel(source: Source, config: str, sym: bool) -> Any:
    """Quantizes with GPTQModel: with GPTQ, or by rounding."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # on two cores it takes one, and then refuses to start
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.quantization import config as configs

    model = GPTQModel.load(
        str(source.folder), getattr(configs, config)(bits=4, group_size=GROUP, sym=sym), device="cpu"
    )
    model.quantize(source.texts if config == "GPTQConfig" else None)
    model.save(str(source.scratch / "quantized"))
    loaded = GPTQModel.load(str(source.scratch / "quantized"), device="cpu", backend=BACKEND.GPTQ_TORCH).model
    loaded.name_or_path = str(source.scratch / "quantized")
    return loaded


def llm_compressor(source: Source, modifier: str, symmetric: bool = True, mask_again: bool = False) -> Any:
    """Quantizes with llm-compressor, in the format of compressed-tensors."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers import gptq, quantization
    from transformers import CompressedTensorsConfig

    args = QuantizationArgs(num_bits=4, symmetric=symmetric, strategy="group", group_size=GROUP)
    kind = gptq.GPTQModifier if modifier == "GPTQ" else quantization.QuantizationModifier
    recipe = kind(config_groups={"all": QuantizationScheme(targets=["Linear"], weights=args)}, ignore=["lm_head"])
    model = source.load()
    tokens = Dataset.from_list([dict(source.tokenizer(text)) for text in source.texts])
    oneshot(model=model, recipe=recipe, dataset=tokens, num_calibration_samples=len(tokens))
    if mask_again:  # zero is a level of a symmetric grid, so the packed codes hold it exactly
        for name, pruned in source.masks.items():
            model.get_submodule(name).weight.data.masked_fill_(pruned, 0)
    return source.reload(model, CompressedTensorsConfig(run_compressed=False))


def nncf(source: Source, mode: str) -> Any:
    """Compresses the weights with NNCF, in torch."""
    from nncf import CompressWeightsMode, Dataset, compress_weights

    example = dict(source.tokenizer(source.texts[0], return_tensors="pt"))
    group = {"group_size": GROUP} if mode.startswith("INT4") else {}
    return compress_weights(source.load(), mode=CompressWeightsMode[mode], dataset=Dataset([example]), **group)


def _decompressor(model: nn.Module, name: str) -> nn.Module:
    """NNCF keeps codes in the layer, and scales in a hook of the model that the layer alone does not call."""
    return model.get_submodule(f"__nncf_hooks.post_hooks.{name.replace('.', ':')}:weight__0.0")


def nncf_matrix(model: nn.Module, name: str, width: int) -> Tensor:
    """As `response_to_identity`: the matrix of a layer that NNCF compressed."""
    matrix: Tensor = _decompressor(model, name)(model.get_parameter(f"{name}.weight"))
    return matrix


def nncf_bytes(model: nn.Module, name: str) -> int:
    """As `bytes_in_memory`: the bytes of a layer that NNCF compressed."""
    return bytes_in_memory(model, name) + count_bytes(_decompressor(model, name).state_dict().values())
