"""Small checkpoints stored in 8 and 4 bits, in the layouts of DeepSeek V3, Qwen3-FP8 and gpt-oss."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load, save_file
from torch import Tensor

from ..families.family import Family
from ..families.matrix import FAMILIES

BLOCK = 4
"""Rows and columns that share a scale; it divides those of all weights."""

# transformers 5.0 reads FP8 only where triton is.
needs_fp8 = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.1") and importlib.util.find_spec("triton") is None,
    reason="this transformers reads FP8 only with triton",
)


def family(name: str, **changes: Any) -> Family:
    found = next(family for family in FAMILIES.values() if family.model_type == name)
    return Family(name, found.blocks, {**found.config, **changes}, since=found.since)


def make_fp8(folder: Path, name: str = "qwen3", side: int = BLOCK) -> dict[str, Tensor]:
    """Writes a checkpoint with FP8 weights and a scale per block, and returns what its weights stand for.

    Args:
        folder: Where to write it.
        name: Family of the model.
        side: Rows and columns of a block; the last one of a weight may be smaller.
    """
    family(name).make().to(torch.bfloat16).save_pretrained(folder)
    stored: dict[str, Tensor] = {}
    meant: dict[str, Tensor] = {}
    for key, tensor in _read(folder).items():
        stored[key] = meant[key] = tensor
        if not key.endswith(("proj.weight", "_a_proj_with_mqa.weight")):
            continue
        rows, columns = tensor.shape
        whole = torch.nn.functional.pad(tensor.float(), (0, -columns % side, 0, -rows % side))
        blocks = whole.unfold(0, side, side).unfold(1, side, side)
        scales = blocks.abs().amax((2, 3)) / 448
        spread = scales.repeat_interleave(side, 0).repeat_interleave(side, 1)[:rows, :columns]
        stored[key] = (tensor.float() / spread).to(torch.float8_e4m3fn)
        stored[f"{key}_scale_inv"] = scales.contiguous()
        meant[key] = (stored[key].float() * spread).to(torch.bfloat16)
    assert any(key.endswith("_scale_inv") for key in stored)
    method = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [side, side]}
    _store(folder, stored, method)
    return meant


VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def make_mxfp4(folder: Path) -> dict[str, Tensor]:
    """Writes a gpt-oss whose experts are stored in 4 bits, and returns what its weights stand for."""
    family("gpt_oss", intermediate_size=64).make().to(torch.bfloat16).save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    stored: dict[str, Tensor] = {}
    meant: dict[str, Tensor] = {}
    for key, tensor in _read(folder).items():
        stored[key] = meant[key] = tensor
        if not key.endswith(("experts.gate_up_proj", "experts.down_proj")):
            continue
        experts, inner, outer = tensor.shape
        del stored[key]
        blocks = torch.randint(0, 256, (experts, outer, inner // 32, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(118, 122, (experts, outer, inner // 32), generator=generator, dtype=torch.uint8)
        stored |= {f"{key}_blocks": blocks, f"{key}_scales": scales}
        codes = torch.stack((blocks & 15, blocks >> 4), -1).flatten(-2).long()
        values = VALUES[codes & 7] * (1 - 2 * (codes >> 3)) * torch.exp2(scales.float() - 127)[..., None]
        meant[key] = values.flatten(-2).transpose(1, 2).contiguous().to(torch.bfloat16)
    _store(folder, stored, {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]})
    return meant


def _read(folder: Path) -> dict[str, Tensor]:
    """The weights in memory of their own: old safetensors writes over a file that `load_file` has only mapped."""
    return load((folder / "model.safetensors").read_bytes())


def _store(folder: Path, stored: dict[str, Tensor], method: dict[str, Any]) -> None:
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = method
    (folder / "config.json").write_text(json.dumps(config))
