"""Models whose embeddings or head are offloaded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from optimum_mwanda import MWandaConfig, MWandaPruner, check_saved, evaluate_languages

from ..conftest import make_model, make_rows

REST = ("model.layers", "model.norm", "model.rotary_emb")


@pytest.mark.parametrize("calibration", ["dense", "sequential"])
@pytest.mark.parametrize("offloaded", [("model.embed_tokens",), ("model.embed_tokens", "lm_head")])
def test_models_with_offloaded_embeddings_are_pruned_measured_and_saved_as_others(
    offloaded: tuple[str, ...], calibration: str, tmp_path: Path
) -> None:
    make_model().save_pretrained(tmp_path / "model")
    places: dict[str, Any] = dict.fromkeys((*REST, "lm_head"), "cpu") | dict.fromkeys(offloaded, "disk")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=str(tmp_path / "offload")
    )
    assert model.model.embed_tokens.weight.device.type == "meta"
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    rows = make_rows()
    config = MWandaConfig(samples_per_language=2, sequence_length=16, batch_size=2, calibration=calibration)
    for each in (model, plain):
        MWandaPruner(config, progress=False).prune(each, rows)
    found, expected = (
        evaluate_languages(each, None, rows, sequence_length=16, progress=False).to_dict() for each in (model, plain)
    )
    assert found["languages"] == expected["languages"]
    model.save_pretrained(tmp_path / "saved")
    check_saved(plain, tmp_path / "saved")
    check_saved(model, tmp_path / "saved")
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, plain.model.layers[0].mlp.up_proj.weight)
