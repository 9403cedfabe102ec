import contextlib
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    modeling_utils,
)

from optimum_mwanda import MWandaConfig, MWandaPruner
from optimum_mwanda.loading import hooks
from optimum_mwanda.loading.hooks import after_import
from optimum_mwanda.record.verification import verify_sparsity
from optimum_mwanda.storage.compressed import save_pretrained_compressed
from optimum_mwanda.storage.files import COMPRESSED_INDEX_FILE

from ..conftest import make_model, make_rows, state_of
from ..forked import python
from ..storage.families import load_family, make_family
from ..storage.test_compressed import make_experts, make_sparse, make_tokenizer

SETTINGS: dict[str, Any] = {"samples_per_language": 2, "sequence_length": 16, "batch_size": 2}


def assert_ordinary(model: PreTrainedModel, folder: Path) -> None:
    """No trace of a quantizer, now or after saving."""
    for name in ("hf_quantizer", "quantization_method"):
        assert not hasattr(model, name)
    assert not getattr(model, "is_quantized", False)
    for config in (model.config, *(m.config for m in model.modules() if isinstance(m, PreTrainedModel))):
        assert not hasattr(config, "quantization_config")
        assert not getattr(config, "_is_quantized", False)
    assert not model.config.to_dict().keys() & {"quantization_config", "transformers_weights"}
    model.save_pretrained(folder)
    assert (folder / "model.safetensors").is_file()
    assert not json.loads((folder / "config.json").read_text()).keys() & {"quantization_config", "transformers_weights"}
    again = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
    assert model.half().dtype == torch.float16
    assert model.float().to("cpu").dtype == torch.float32


def assert_same(model: PreTrainedModel, expected: dict[str, torch.Tensor]) -> None:
    state = model.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype, name
        assert torch.equal(state[name].view(torch.uint8), tensor.view(torch.uint8)), name


# Prune on load


@pytest.mark.parametrize("calibration", ["dense", "sequential"])
def test_pruning_while_loading_gives_the_masks_of_the_pruner(calibration: str, tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "dense")
    rows = make_rows()
    config = MWandaConfig(**SETTINGS, calibration=calibration, dataset=rows)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=config)
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    MWandaPruner(MWandaConfig(**SETTINGS, calibration=calibration)).prune(expected, rows)
    assert_same(model, state_of(expected))
    assert (model.model.layers[1].mlp.up_proj.weight == 0).float().mean() > 0.3
    assert_ordinary(model, tmp_path / "pruned")


def make_pairs(rows: int = 4) -> list[dict[str, Any]]:
    """Tokenised sources and targets of two languages."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "language": language,
            "input_ids": torch.randint(3, 60, (24,), generator=generator).tolist(),
            "labels": torch.randint(3, 60, (12,), generator=generator).tolist(),
        }
        for language in ("en", "sw")
        for _ in range(rows)
    ]


@pytest.mark.parametrize("calibration", ["dense", "sequential"])
@pytest.mark.parametrize("family", ["mixtral", "t5"])
def test_mixtures_and_encoder_decoders_are_pruned_while_loading(family: str, calibration: str, tmp_path: Path) -> None:
    make_family(family).save_pretrained(tmp_path / "dense")
    rows = make_pairs() if family == "t5" else make_rows()
    changes = {**SETTINGS, "calibration": calibration, "min_expert_tokens": 1}
    config = MWandaConfig(**changes, dataset=rows)
    model = load_family(family, tmp_path / "dense", quantization_config=config)
    expected = load_family(family, tmp_path / "dense")
    MWandaPruner(MWandaConfig(**changes), progress=False).prune(expected, rows)
    assert_same(model, state_of(expected))
    assert verify_sparsity(model).ok
    assert model.config.mwanda_config["achieved_sparsity"] == pytest.approx(0.5, abs=0.01)
    model.save_pretrained(tmp_path / "pruned")
    assert verify_sparsity(tmp_path / "pruned").ok
    assert_same(load_family(family, tmp_path / "pruned"), state_of(expected))


def test_texts_are_encoded_with_the_tokenizer_that_is_passed(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    rows = {"en": ["the quick brown fox"] * 4, "sw": ["habari ya asubuhi"] * 4}
    make_model().save_pretrained(tmp_path)
    config = MWandaConfig(**SETTINGS, dataset=rows, tokenizer=tokenizer)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    expected = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_same(model, state_of(MWandaPruner(MWandaConfig(**SETTINGS)).prune(expected, rows, tokenizer)))


def test_model_that_was_pruned_while_loading_trains(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "dense")
    config = MWandaConfig(**SETTINGS, dataset=make_rows())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=config)
    rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in make_rows()]
    arguments = TrainingArguments(str(tmp_path / "run"), max_steps=1, report_to="none", use_cpu=True)
    trainer = Trainer(model, arguments, train_dataset=rows)
    assert trainer.train().global_step == 1


def test_missing_dataset_is_one_clear_error_before_loading(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"needs calibration data: pass quantization_config=MWandaConfig\(dataset="):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=MWandaConfig())


def test_magnitude_pruning_while_loading_needs_no_dataset(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    settings = MWandaConfig(criterion="magnitude", allocation="uniform")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=settings)
    expected = MWandaPruner(settings).prune(AutoModelForCausalLM.from_pretrained(tmp_path))
    assert_same(model, state_of(expected))


def test_dataset_and_tokenizer_are_no_settings(tmp_path: Path) -> None:
    with_data = MWandaConfig(dataset=iter([]), tokenizer=object())
    assert with_data.to_dict() == MWandaConfig().to_dict()
    assert with_data == MWandaConfig()
    assert repr(with_data) == repr(MWandaConfig())
    assert not {"dataset", "tokenizer", "quant_method"} & with_data.to_dict().keys()
    with pytest.raises(ValueError, match="not a setting"):
        MWandaConfig.from_dict({"dataset": []})


# Compressed storage


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse model in bfloat16, with a negative zero and a NaN of its own."""
    folder = tmp_path_factory.mktemp("stored")
    model = make_sparse(make_model()).bfloat16()
    weight = model.model.layers[0].mlp.up_proj.weight.data.view(torch.int16)
    weight[0, :2] = torch.tensor([-0x8000, 0x7FC5])
    model.config.mwanda_config = {"schema": 1}
    model.save_pretrained(folder / "dense")
    save_pretrained_compressed(model, folder / "stored")
    save_pretrained_compressed(model, folder / "sharded", max_shard_size="20KB")
    return folder


@pytest.mark.parametrize("layout", ["stored", "sharded"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": "auto"},
        {"dtype": torch.float32},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float16},
        {"device_map": "cpu"},
        {"device_map": "auto"},
        pytest.param(
            {"disable_mmap": True},
            marks=pytest.mark.skipif(Version(transformers.__version__) < Version("5.23"), reason="has no such option"),
        ),
    ],
    ids=str,
)
def test_plain_from_pretrained_loads_what_it_would_load_from_the_dense_folder(
    options: dict[str, Any], layout: str, stored: Path, tmp_path: Path
) -> None:
    model, report = AutoModelForCausalLM.from_pretrained(stored / layout, output_loading_info=True, **options)
    assert not any(report.values())
    assert_same(model, state_of(AutoModelForCausalLM.from_pretrained(stored / "dense", **options)))


def test_loaded_model_is_ordinary_and_keeps_its_record(stored: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(stored / "sharded")
    assert model.config.mwanda_config == {"schema": 1}
    model.model.layers[0].mlp.up_proj.weight.data[0, 1] = 0  # NaN is not equal to itself
    assert_ordinary(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["mwanda_config"] == {"schema": 1}


@pytest.mark.parametrize("shard", ["50GB", "20KB"])
def test_experts_are_fused_again_and_saved_one_by_one(shard: str, tmp_path: Path) -> None:
    model = make_sparse(make_experts()).bfloat16()
    save_pretrained_compressed(model, tmp_path / "stored", max_shard_size=shard)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "stored", output_loading_info=True)
    assert not any(report.values())
    assert_same(loaded, state_of(model))
    model.save_pretrained(tmp_path / "dense")
    loaded.save_pretrained(tmp_path / "again")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "dense" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_other_heads_load(stored: Path) -> None:
    expected = AutoModelForCausalLM.from_pretrained(stored / "dense").model.state_dict()
    assert_same(AutoModel.from_pretrained(stored / "stored"), expected)
    classifier, report = AutoModelForSequenceClassification.from_pretrained(
        stored / "sharded", output_loading_info=True, num_labels=2
    )
    assert set(report["missing_keys"]) == {"score.weight"}
    assert_same(classifier.model, expected)


def test_weights_that_are_offloaded_to_disk_are_decoded(stored: Path, tmp_path: Path) -> None:
    devices = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    model = AutoModelForCausalLM.from_pretrained(
        stored / "stored", device_map={**devices, "lm_head": "cpu"}, offload_folder=str(tmp_path / "offload")
    )
    ids = torch.tensor([[5, 9, 11]])
    expected = AutoModelForCausalLM.from_pretrained(stored / "dense")(ids).logits
    assert torch.equal(model(ids).logits.nan_to_num(), expected.nan_to_num())


def test_pruning_while_loading_a_compressed_model_is_refused(stored: Path) -> None:
    with pytest.raises(ValueError, match="CompressedConfig"):
        AutoModelForCausalLM.from_pretrained(stored / "stored", quantization_config=MWandaConfig(dataset=make_rows()))


def test_newer_layout_asks_for_a_newer_package(stored: Path, tmp_path: Path) -> None:
    config = json.loads((stored / "stored" / "config.json").read_text())
    config["quantization_config"]["format"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"layout 3.*install a newer optimum-mwanda"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def copy_with_index(stored: Path, folder: Path, index: Any) -> Path:
    """A sharded checkpoint with another index."""
    shutil.copytree(stored / "sharded", folder)
    (folder / COMPRESSED_INDEX_FILE).write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("options", [{}, {"use_safetensors": True}, {"weights_only": False}], ids=str)
def test_index_never_leads_to_a_pickle(options: dict[str, Any], stored: Path, tmp_path: Path) -> None:
    folder = copy_with_index(stored, tmp_path / "new", {"metadata": {}, "weight_map": {"x": "evil.bin"}})
    torch.save(Touch(tmp_path / "marker"), folder / "evil.bin")
    with pytest.raises(ValueError, match=r"names 'evil\.bin', which is not a \.mwanda\.safetensors file"):
        AutoModelForCausalLM.from_pretrained(folder, **options)
    assert not (tmp_path / "marker").exists()
    torch.load(folder / "evil.bin", weights_only=False)
    assert (tmp_path / "marker").exists(), "the pickle would have run"


@pytest.mark.parametrize(
    "shard", ["../sharded/x.mwanda.safetensors", "/x.mwanda.safetensors", "sub/x.mwanda.safetensors", 3, ["x"], None]
)
def test_index_that_points_elsewhere_is_refused(shard: Any, stored: Path, tmp_path: Path) -> None:
    folder = copy_with_index(stored, tmp_path / "new", {"metadata": {}, "weight_map": {"x": shard}})
    with pytest.raises(ValueError, match=r"index\.json names .*the same folder"):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("index", [{}, [], 3, {"metadata": {}}, {"weight_map": 3}, {"weight_map": []}])
def test_malformed_index_is_refused(index: Any, stored: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"index\.json (holds no weight_map|must hold one JSON object)"):
        AutoModelForCausalLM.from_pretrained(copy_with_index(stored, tmp_path / "new", index))


def test_index_without_metadata_is_refused(stored: Path, tmp_path: Path) -> None:
    folder = copy_with_index(stored, tmp_path / "new", {"weight_map": {"x": "x.mwanda.safetensors"}})
    with pytest.raises(ValueError, match=r"index\.json holds no metadata"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_index_of_a_repository_is_checked_before_anything_it_names_is_fetched(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = {"metadata": {}, "weight_map": {"x": "evil.bin"}}
    folder = copy_with_index(stored, tmp_path / "new", index)
    monkeypatch.setattr("transformers.utils.hub.cached_files", lambda *_, **__: pytest.fail("fetched"))
    with pytest.raises(ValueError, match=r"names 'evil\.bin'"):
        modeling_utils.get_checkpoint_shard_files("someone/model", str(folder / COMPRESSED_INDEX_FILE))


def test_other_sharded_checkpoints_load_as_ever(tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    (tmp_path / "sub").mkdir()
    for file in set(index["weight_map"].values()):
        (tmp_path / file).rename(tmp_path / "sub" / file)
    index["weight_map"] = {name: f"sub/{file}" for name, file in index["weight_map"].items()}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(AutoModelForCausalLM.from_pretrained(tmp_path), state_of(model))


def test_tensor_that_is_missing_from_a_shard_is_named(stored: Path, tmp_path: Path) -> None:
    shutil.copytree(stored / "sharded", tmp_path / "new")
    index = json.loads((tmp_path / "new" / COMPRESSED_INDEX_FILE).read_text())
    path = tmp_path / "new" / index["weight_map"]["model.norm.weight"]
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    for load in (AutoModelForCausalLM, AutoModel, AutoModelForSequenceClassification):
        with pytest.raises(ValueError, match=r"holds \d+ tensors, but .*'(model\.)?norm\.weight'"):
            load.from_pretrained(tmp_path / "new")


def test_experts_that_are_stored_one_by_one_are_not_called_missing(tmp_path: Path) -> None:
    save_pretrained_compressed(make_experts(), tmp_path / "stored")
    path = tmp_path / "stored" / "model.mwanda.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"Nothing is stored for 'model\.norm\.weight'\.$"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "stored")


@pytest.mark.parametrize("shard", ["50GB", "20KB"])
def test_tied_weights_and_base_models_load(shard: str, tmp_path: Path) -> None:
    for name, model in {"tied": make_model("gpt2"), "base": make_model().model}.items():
        save_pretrained_compressed(make_sparse(model), tmp_path / name, max_shard_size=shard)
    tied, report = AutoModelForCausalLM.from_pretrained(tmp_path / "tied", output_loading_info=True)
    assert not any(report.values())
    assert tied.lm_head.weight is tied.transformer.wte.weight
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert set(report["missing_keys"]) == {"lm_head.weight"}


# Importing

LOAD = """
import torch
model, report = AutoModelForCausalLM.from_pretrained({path!r}, output_loading_info=True{more})
dense = AutoModelForCausalLM.from_pretrained({dense!r}).state_dict()
assert not any(report.values()), report
assert all(torch.equal(dense[k].view(torch.uint8), v.view(torch.uint8)) for k, v in model.state_dict().items())
print("equal")
"""


def run_python(code: str, interpreter: str | None = None) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    return subprocess.run([interpreter or python(), "-c", code], capture_output=True, text=True, cwd=root)


@pytest.mark.parametrize(
    "imports",
    [
        "import optimum_mwanda; from transformers import AutoModelForCausalLM",
        "from transformers import AutoModelForCausalLM; import optimum_mwanda",
        "import transformers.modeling_utils; import optimum_mwanda; from transformers import AutoModelForCausalLM",
    ],
)
def test_importing_the_package_before_or_after_transformers_is_enough(imports: str, stored: Path) -> None:
    load = LOAD.format(path=str(stored / "sharded"), dense=str(stored / "dense"), more="")
    result = run_python(f"{imports}\n{load}")
    assert result.stdout.strip() == "equal", result.stderr


@pytest.mark.parametrize(("layout", "more"), [("stored", ""), ("sharded", ""), ("stored", ", variant='mwanda'")])
def test_without_the_package_loading_fails(layout: str, more: str, stored: Path) -> None:
    load = LOAD.format(path=str(stored / layout), dense=str(stored / "dense"), more=more)
    result = run_python(f"from transformers import AutoModelForCausalLM\n{load}")
    assert result.returncode != 0
    assert "equal" not in result.stdout
    assert "in from_pretrained" in result.stderr


def test_importing_the_package_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, optimum_mwanda; print([n for n in ('torch', 'transformers', 'safetensors') if n in sys.modules])"
    )
    assert run_python(code, interpreter=sys.executable).stdout.strip() == "[]"


def test_action_waits_for_an_import_that_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    done: list[str] = []
    after_import("mwanda_sample", lambda: done.append(sys.modules["mwanda_sample"].value))
    for text in ("raise ImportError('broken')", "value = 'first'"):
        assert done == []
        (tmp_path / "mwanda_sample.py").write_text(text)
        importlib.invalidate_caches()
        with contextlib.suppress(ImportError):
            importlib.import_module("mwanda_sample")
    assert done == ["first"]
    importlib.reload(sys.modules["mwanda_sample"])
    assert done == ["first"]
    after_import("mwanda_sample", lambda: done.append("at once"))
    assert done == ["first", "at once"]
    del sys.modules["mwanda_sample"]


def test_transformers_that_cannot_be_extended_is_imported_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("optimum_mwanda.loading.quantizer.register")
    with pytest.warns(UserWarning, match="cannot prune on load or read compressed checkpoints"):
        hooks.install()
