"""A model is the same model wherever its values lie."""

from pathlib import Path

import accelerate
import pytest
import torch

from optimum_mwanda.modeling.fingerprint import model_fingerprint
from tests.families.matrix import FAMILIES

TIED = ["llama", "gemma3_text", "mixtral", "t5", "bart"]


@pytest.mark.parametrize("family", TIED)
def test_values_offloaded_to_memory_or_disk_count_as_those_of_the_model(family: str, tmp_path: Path) -> None:
    expected = model_fingerprint(FAMILIES[family].make().bfloat16())
    in_memory, on_disk = (FAMILIES[family].make().bfloat16() for _ in range(2))
    accelerate.cpu_offload(in_memory)
    accelerate.disk_offload(on_disk, str(tmp_path))
    for model in (in_memory, on_disk):
        assert all(parameter.device.type == "meta" for parameter in model.parameters())
        assert model_fingerprint(model) == expected


def test_a_model_that_is_loaded_offloaded_is_the_one_that_was_saved(tmp_path: Path) -> None:
    model = FAMILIES["gemma3_text"].make()
    model.save_pretrained(tmp_path / "model")
    places = {"model.layers": "disk", **dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb"), "cpu")}
    loaded = type(model).from_pretrained(
        tmp_path / "model", device_map={**places, "lm_head": "cpu"}, offload_folder=str(tmp_path / "offload")
    )
    assert loaded.model.layers[0].mlp.up_proj.weight.device.type == "meta"
    assert model_fingerprint(loaded) == model_fingerprint(model)
    assert model_fingerprint(loaded) != model_fingerprint(FAMILIES["gemma3_text"].make(seed=1))


def test_offloaded_values_are_told_apart(tmp_path: Path) -> None:
    model, other = FAMILIES["llama"].make(), FAMILIES["llama"].make()
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight[0, 0] += 1
    expected = model_fingerprint(other)
    accelerate.cpu_offload(model)
    accelerate.cpu_offload(other)
    assert model_fingerprint(model) != model_fingerprint(other) == expected
