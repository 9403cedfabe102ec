"""The record of a composite model is found again in each part that can be loaded alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from optimum_mwanda import MWandaConfig, MWandaPruner, sparsity_record, verify_sparsity
from optimum_mwanda.experiments.dense_state import DenseState

from ..families.family import SIZES
from ..families.matrix import FAMILIES

PARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama4": (
        {"head_dim": 8, "num_local_experts": 4, "intermediate_size_mlp": 48},
        {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "image_size": 8,
            "patch_size": 4,
            "vision_output_dim": 16,
            "projector_input_dim": 16,
            "projector_output_dim": 16,
            "pixel_shuffle_ratio": 0.5,
        },
    ),
    "qwen3_5": (
        {
            "head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        {
            "depth": 1,
            "hidden_size": 16,
            "num_heads": 2,
            "intermediate_size": 16,
            "patch_size": 4,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
        },
    ),
}


def make(model_type: str) -> PreTrainedModel:
    """A tiny model that reads text and pictures."""
    if model_type not in PARTS:
        return FAMILIES[model_type].make()
    torch.manual_seed(0)
    try:
        text, vision = PARTS[model_type]
        config = AutoConfig.for_model(model_type, text_config={**SIZES, **text}, vision_config=vision)
        return AutoModelForImageTextToText.from_config(config)
    except (ValueError, AttributeError):
        pytest.skip(f"this transformers does not make a {model_type}")


PRUNER = MWandaPruner(MWandaConfig(criterion="magnitude", allocation="uniform"), progress=False)


@pytest.mark.parametrize("model_type", PARTS)
def test_text_part_that_is_loaded_alone_has_the_record(model_type: str, tmp_path: Path) -> None:
    model = PRUNER.prune(make(model_type))
    model.save_pretrained(tmp_path / "whole")
    text = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert type(text) is not type(model)
    assert sparsity_record(text) == sparsity_record(model)
    assert verify_sparsity(text).ok
    text.save_pretrained(tmp_path / "text")
    assert verify_sparsity(tmp_path / "text").ok


@pytest.mark.parametrize("model_type", ["llama4", "qwen3_5", "gemma3", "qwen3_vl"])
def test_other_parts_have_no_record(model_type: str) -> None:
    model = PRUNER.prune(make(model_type))
    assert hasattr(model.config, "mwanda_config")
    assert hasattr(model.config.get_text_config(), "mwanda_config")
    assert not hasattr(model.config.vision_config, "mwanda_config")


def test_records_of_all_parts_are_taken_back_with_the_weights() -> None:
    model = make("gemma3")
    with DenseState(model, []) as state:
        PRUNER.prune(model)
        state.restore()
    assert not hasattr(model.config, "mwanda_config")
    assert not hasattr(model.config.get_text_config(), "mwanda_config")
