"""What a plan says of memory is what the operating system counts."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version

from optimum_mwanda import MWandaConfig, plan_pruning
from optimum_mwanda.loading.footprint import FRAGMENTS

from .planned import SETTINGS, rows

SIZES: dict[str, Any] = {"vocab_size": 8000, "num_attention_heads": 8, "num_key_value_heads": 8}
MODELS: dict[str, tuple[str, dict[str, Any], torch.dtype]] = {
    "deep": ("Llama", {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8}, torch.float32),
    "wide": ("Qwen3", {"hidden_size": 1280, "intermediate_size": 3584, "num_hidden_layers": 3}, torch.bfloat16),
    "experts": (
        "Mixtral",
        {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 3, "num_local_experts": 4},
        torch.float32,
    ),
}
AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Lets the C library give back what is freed; what it keeps otherwise varies from run to run."""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.14"), reason="older transformers hold less than is planned for"
)
@pytest.mark.parametrize("name", MODELS)
def test_memory_is_right_to_within_15_percent(name: str, tmp_path: Path) -> None:
    family, sizes, dtype = MODELS[name]
    config = getattr(transformers, f"{family}Config")(**SIZES, **sizes)
    with torch.device("meta"):
        model = getattr(transformers, f"{family}ForCausalLM")(config).to(dtype)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        values = torch.linspace(-0.04, 0.04, 9973, dtype=dtype)  # quicker than random ones
        flat = parameter.data.view(-1)
        flat.copy_(values.repeat(-(-flat.numel() // 9973))[: flat.numel()])
    model.save_pretrained(tmp_path / name)
    del model
    plan = plan_pruning(tmp_path / name, MWandaConfig(**SETTINGS), rows(), timed=False)
    said = {"memory": plan.memory.memory - FRAGMENTS, "stream": plan.stream.memory}
    words = [sys.executable, "-m", "tests.loading.planned", str(tmp_path / name)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **AT_ONCE})
    found = {mode: int(size) for mode, size in map(str.split, done.stdout.splitlines())}
    assert said == pytest.approx(found, rel=0.15)
