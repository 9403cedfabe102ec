"""What was written is what was in memory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from optimum_mwanda import MWandaConfig, MWandaPruner
from optimum_mwanda.storage import compressed, read_back
from optimum_mwanda.storage.compressed import compress, decompress, save_pretrained_compressed
from optimum_mwanda.storage.read_back import check_saved, save_checked

from ..conftest import make_model
from .families import FAMILIES, load_family, make_family
from .quantized import make_fp8, make_mxfp4, needs_fp8

STORED = (
    pytest.param(lambda folder: make_fp8(folder, "qwen3"), marks=needs_fp8, id="qwen3"),
    pytest.param(lambda folder: make_fp8(folder, "deepseek_v3"), marks=needs_fp8, id="deepseek_v3"),
    pytest.param(make_mxfp4, id="gpt_oss"),
)


def pruned(model: PreTrainedModel) -> PreTrainedModel:
    return MWandaPruner(MWandaConfig(criterion="magnitude", allocation="uniform"), progress=False).prune(model)


@pytest.mark.parametrize("make", STORED)
def test_models_stored_in_8_or_4_bits_are_written_as_the_plain_weights_they_stand_for(
    make: Callable[[Path], dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    meant = make(tmp_path / "stored")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "stored", dtype=torch.bfloat16)
    save_checked(model, tmp_path / "dense")
    written = load_file(tmp_path / "dense" / "model.safetensors")
    assert written.keys() == meant.keys()
    float32 = tuple(model._keep_in_fp32_modules_strict or ())  # since transformers 5.24 also routers, for some classes
    for name, tensor in meant.items():
        may_be_float32 = tensor.dim() == 1 or name.endswith(float32)  # some keep norms and biases in float32
        assert written[name].dtype == torch.bfloat16 or (written[name].dtype == torch.float32 and may_be_float32)
        assert torch.equal(written[name].to(torch.bfloat16), tensor), name
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())


@pytest.mark.parametrize("make", STORED)
def test_plain_save_pretrained_is_right_after_pruning(
    make: Callable[[Path], dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    make(tmp_path / "stored")
    model = pruned(AutoModelForCausalLM.from_pretrained(tmp_path / "stored", dtype=torch.bfloat16))
    model.save_pretrained(tmp_path / "pruned")
    check_saved(model, tmp_path / "pruned")
    save_pretrained_compressed(model, tmp_path / "small")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "small").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_layout_is_read_back_as_it_is_in_memory(name: str, tmp_path: Path) -> None:
    model = make_family(name)
    save_checked(model, tmp_path / "first", max_shard_size="20KB")
    again = load_family(name, tmp_path / "first")
    save_checked(again, tmp_path / "second")
    check_saved(model, tmp_path / "second")


def rename(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.up"] = tensors.pop("model.layers.1.mlp.up_proj.weight")


def drop(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.layers.1.mlp.up_proj.weight"]


def flip(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] += 1e-6


def cut(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"][:8].clone()


def shrink(tensors: dict[str, torch.Tensor]) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)


def add(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight_scale_inv"] = torch.ones(2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, "1 weights are not stored: 'model.layers.1.mlp.up_proj.weight'"),
        (drop, "1 weights are not stored: 'model.layers.1.mlp.up_proj.weight'"),
        (flip, "1 weights are stored with another shape or other values: 'model.layers.1.mlp.up_proj.weight'"),
        (cut, "1 weights are stored with another shape or other values"),
        (shrink, "1 weights are stored in a type that the model does not have"),
        (add, "stored under a name that the model does not have: 'model.layers.1.mlp.up_proj.weight_scale_inv'"),
    ],
)
def test_what_differs_from_the_model_is_named(
    change: Callable[[dict[str, torch.Tensor]], None], message: str, tmp_path: Path
) -> None:
    model = make_model()
    save_checked(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=message):
        check_saved(model, tmp_path)


def test_tied_weights_several_types_and_values_that_are_not_numbers_are_no_difference(tmp_path: Path) -> None:
    model = make_model("gpt2").to(torch.bfloat16)
    model.transformer.ln_f.float()
    model.transformer.h[0].mlp.c_fc.weight.data[0, :2] = torch.tensor([float("nan"), -0.0])
    save_checked(model, tmp_path)


def test_compiled_models_are_saved_and_read_back_as_the_model_that_they_wrap(tmp_path: Path) -> None:
    model = pruned(make_model())
    compiled = torch.compile(model, backend="eager")
    save_checked(compiled, tmp_path / "dense")
    check_saved(model, tmp_path / "dense")
    check_saved(compiled, tmp_path / "dense")
    save_pretrained_compressed(compiled, tmp_path / "small")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "small").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_offloaded_weights_are_read_from_where_they_are(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "model")
    places = {"model": "cpu", "lm_head": "disk"}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=str(tmp_path / "offload")
    )
    save_checked(model, tmp_path / "saved")
    other = make_model(seed=1)
    with pytest.raises(ValueError, match="or other values"):
        check_saved(other, tmp_path / "saved")


def test_a_folder_that_would_load_as_another_model_does_not_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pruned(make_model())
    honest = PreTrainedModel.save_pretrained

    def save_other(self: PreTrainedModel, folder: Any, **options: Any) -> None:
        honest(make_model(seed=1), folder, **options)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save_other)
    with pytest.raises(ValueError, match="is not the model in memory, and was not kept"):
        save_pretrained_compressed(model, tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("direction", ["compress", "decompress"])
def test_a_copy_that_differs_from_its_source_does_not_appear(
    direction: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned(make_model()).save_pretrained(tmp_path / "dense")
    compress(tmp_path / "dense", tmp_path / "small")
    honest = compressed.SafetensorsWriter.add

    def add_other(self: Any, name: str, tensor: torch.Tensor) -> None:
        honest(self, name, -tensor if name == "model.norm.weight" else tensor)

    monkeypatch.setattr(compressed.SafetensorsWriter, "add", add_other)
    convert, source = (compress, "dense") if direction == "compress" else (decompress, "small")
    with pytest.raises(ValueError, match=r"does not hold what was written to it: 'model\.norm.weight'"):
        convert(tmp_path / source, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_same_bits() -> None:
    nan = torch.tensor([float("nan"), 0.0])
    assert read_back.same_bits(nan, nan.clone())
    assert not read_back.same_bits(nan, -nan)
    assert not read_back.same_bits(nan, nan.double())
    assert not read_back.same_bits(nan, nan[None])
