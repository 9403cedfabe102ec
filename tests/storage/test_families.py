"""Records, verification and storage of mixtures of experts and encoder-decoders, through real files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, PreTrainedModel

from optimum_mwanda import MWandaConfig, MWandaPruner
from optimum_mwanda.record.matrices import read_matrices
from optimum_mwanda.record.verification import ChangedMatrix, sparsity_map, sparsity_record, verify_sparsity
from optimum_mwanda.storage.coded import FORM
from optimum_mwanda.storage.compressed import compress, decompress, save_pretrained_compressed

from ..conftest import state_of
from .families import FAMILIES, MIXTURES, load_family, logits_of, make_family

# Parameters of all experts of a layer, in one layer, with the shape of the matrices.
EXPERTS: dict[str, dict[str, tuple[int, ...]]] = {
    "mixtral": {"mlp.experts.gate_up_proj": (4, 96, 32), "mlp.experts.down_proj": (4, 32, 48)},
    "qwen3_moe": {"mlp.experts.gate_up_proj": (4, 48, 32), "mlp.experts.down_proj": (4, 32, 24)},
    "deepseek_v3": {"mlp.experts.gate_up_proj": (4, 48, 32), "mlp.experts.down_proj": (4, 32, 24)},
    "jamba": {"feed_forward.experts.gate_up_proj": (4, 96, 32), "feed_forward.experts.down_proj": (4, 32, 48)},
    "gpt_oss": {"mlp.experts.gate_up_proj": (4, 96, 32), "mlp.experts.down_proj": (4, 32, 48)},
    "llama4_text": {"feed_forward.experts.gate_up_proj": (4, 96, 32), "feed_forward.experts.down_proj": (4, 32, 48)},
    "dbrx": {
        "ffn.experts.mlp.w1": (4, 32, 32),
        "ffn.experts.mlp.v1": (4, 32, 32),
        "ffn.experts.mlp.w2": (4, 32, 32),
    },
    "jetmoe": {
        "mlp.input_linear": (4, 96, 32),
        "mlp.output_linear": (4, 32, 48),
        "self_attention.experts.input_linear": (4, 16, 32),
        "self_attention.experts.output_linear": (4, 32, 16),
    },
}
# transformers 5.0 had other names for the experts of granitemoe.
RENAMED = ("granitemoe",)
FUSED_ON_DISK = ("granitemoe", "gpt_oss", "llama4_text", "jetmoe")


def pruned(name: str, sparsity: float = 0.4, **changes: Any) -> PreTrainedModel:
    settings = {"criterion": "magnitude", "group": "matrix", "allocation": "uniform", "sparsity": sparsity, **changes}
    return MWandaPruner(MWandaConfig(**settings), progress=False).apply(make_family(name))


def parameter_of(model: PreTrainedModel, name: str) -> torch.Tensor:
    """The parameter that a name of the record stands for."""
    state = model.state_dict()
    return state[name] if name in state else state[f"{name}.weight"]


@pytest.fixture(scope="module")
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Path]:
    """A pruned model, and folders with it: dense and compressed, in one file and in many."""
    folder = tmp_path_factory.mktemp(request.param)
    model = pruned(request.param)
    model.save_pretrained(folder / "dense")
    model.save_pretrained(folder / "shards", max_shard_size="20KB")
    save_pretrained_compressed(model, folder / "small")
    compress(folder / "shards", folder / "small-shards")
    return request.param, model, folder


every_family = pytest.mark.parametrize("saved", FAMILIES, indirect=True)
FOLDERS = ("dense", "shards", "small", "small-shards")


@pytest.mark.parametrize("saved", [name for name in MIXTURES if name not in RENAMED], indirect=True)
def test_the_record_counts_every_stored_parameter_of_experts_once(saved: tuple[str, Any, Path]) -> None:
    name, model, _ = saved
    record = sparsity_record(model)
    assert record is not None
    experts = [matrix for matrix in record.matrices if len(matrix.shape) == 3]
    assert {matrix.path: matrix.shape for matrix in experts} == EXPERTS[name]
    for matrix in experts:
        assert matrix.zeros == int((parameter_of(model, matrix.name) == 0).sum())
    assert sparsity_map(model).keys() == {matrix.name for matrix in record.matrices}
    assert record.achieved_sparsity == pytest.approx(0.4, abs=2e-3)


@every_family
def test_model_and_folders_are_verified(saved: tuple[str, Any, Path]) -> None:
    _, model, folder = saved
    expected = sparsity_map(model)
    assert list(expected.values()) == pytest.approx([0.4] * len(expected), abs=5e-3)
    for place in (model, *(folder / name for name in FOLDERS)):
        result = verify_sparsity(place)
        assert result.ok, str(result)
        assert result.matrices == len(expected)
        assert sparsity_map(place) == expected


@every_family
def test_without_a_record_the_map_has_the_same_names(saved: tuple[str, Any, Path]) -> None:
    name, _, folder = saved
    model = load_family(name, folder / "dense")
    expected = sparsity_map(model)
    del model.config.mwanda_config
    assert sparsity_map(model) == expected


@every_family
def test_compressed_folders_load_to_the_same_bits_and_are_saved_dense_again(
    saved: tuple[str, Any, Path], tmp_path: Path
) -> None:
    name, model, folder = saved
    expected, logits = state_of(model), logits_of(name, model)
    for kind in ("small", "small-shards"):
        loaded = load_family(name, folder / kind)
        state = loaded.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], tensor) for key, tensor in expected.items())
        assert torch.equal(logits_of(name, loaded), logits)
        assert verify_sparsity(loaded).ok
    loaded.save_pretrained(tmp_path / "again")
    decompress(folder / "small", tmp_path / "unpacked")
    dense = load_file(folder / "dense" / "model.safetensors")
    for copy in ("again", "unpacked"):
        tensors = load_file(tmp_path / copy / "model.safetensors")
        assert tensors.keys() == dense.keys()
        assert all(torch.equal(tensors[key], tensor) for key, tensor in dense.items())


@every_family
def test_every_pruned_matrix_is_stored_by_its_nonzeros(saved: tuple[str, Any, Path]) -> None:
    _, model, folder = saved
    tensors = load_file(folder / "small" / "model.mwanda.safetensors")
    coded = {key.removesuffix(FORM) for key in tensors if key.endswith(FORM)}
    dense = load_file(folder / "dense" / "model.safetensors")
    sparse = {key for key, tensor in dense.items() if (tensor == 0).float().mean() > 0.35 and tensor.numel() >= 1024}
    assert sparse
    assert sparse <= coded
    assert all(tensors[key].dim() == 1 for key in sparse)
    if model.config.model_type in FUSED_ON_DISK:
        assert any(dense[key].dim() == 3 for key in sparse)


@pytest.mark.parametrize(("family", "prefix"), [("mixtral", "model."), ("m2m_100", "model.")])
def test_base_models_are_verified_although_prefixes_differ(family: str, prefix: str, tmp_path: Path) -> None:
    pruned(family).save_pretrained(tmp_path / "whole")
    base = AutoModel.from_pretrained(tmp_path / "whole")
    base.save_pretrained(tmp_path / "base")
    for place in (base, tmp_path / "base"):
        assert verify_sparsity(place).ok
        assert all(name.startswith(prefix) for name in sparsity_map(place))


@pytest.mark.parametrize("excluded", ["*.experts.0.*", "*.experts.[01].*"])
def test_experts_left_out_lower_the_sparsity(excluded: str, tmp_path: Path) -> None:
    model = pruned("mixtral", 0.5, exclude=(excluded, "*.self_attn.*"))
    dense = make_family("mixtral")
    record = sparsity_record(model)
    assert record is not None
    share = 0.5 * (3 / 4 if "0." in excluded else 2 / 4)
    assert record.achieved_sparsity == pytest.approx(share, abs=1e-3)
    assert record.target_sparsity == 0.5
    down = "model.layers.1.mlp.experts.down_proj"
    found = [(matrix.shape, matrix.zeros) for matrix in record.matrices if matrix.path == "mlp.experts.down_proj"]
    assert found == [((4, 32, 48), int(share * 6144))] * 2
    assert torch.equal(parameter_of(model, down)[0], parameter_of(dense, down)[0])
    model.save_pretrained(tmp_path)
    assert verify_sparsity(tmp_path).ok


def test_a_change_to_one_expert_on_disk_is_found_in_the_parameter_of_all(tmp_path: Path) -> None:
    pruned("mixtral").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    prefix = "model.layers.1.block_sparse_moe.experts"
    zeros = int((tensors[f"{prefix}.2.w3.weight"] == 0).sum())
    tensors[f"{prefix}.2.w3.weight"].fill_(1)
    del tensors[f"{prefix}.3.w2.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    result = verify_sparsity(tmp_path)
    (lost,) = result.lost
    assert lost == ChangedMatrix("model.layers.1.mlp.experts.gate_up_proj", lost.recorded, lost.recorded - zeros)
    assert result.reshaped == ("model.layers.1.mlp.experts.down_proj",)
    assert result.missing == result.gained == ()


def test_a_change_in_memory_is_found_in_stacked_experts() -> None:
    model = pruned("dbrx")
    with torch.no_grad():
        parameter_of(model, "transformer.blocks.1.ffn.experts.mlp.w2")[:32].fill_(1)
    assert [matrix.name for matrix in verify_sparsity(model).lost] == ["transformer.blocks.1.ffn.experts.mlp.w2"]


def test_recorded_names_that_are_on_disk_count_even_if_transformers_would_rename_them(tmp_path: Path) -> None:
    make_family("qwen3_moe").save_pretrained(tmp_path)
    own = "model.layers.1.mlp.experts.3.down_proj"
    fused = "model.layers.1.mlp.experts.down_proj"
    assert own not in read_matrices(tmp_path)
    matrices = read_matrices(tmp_path, {own})
    assert matrices[own].shapes == ((32, 24),)
    assert matrices[fused].shapes == ((32, 24),) * 4
    assert matrices[own].count_zeros() == matrices[fused].count_zeros() == 0
