"""Loading a checkpoint whole."""

import json
import logging
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    BertModel,
    LlamaForCausalLM,
    LlamaModel,
)

from optimum_mwanda.loading.whole import load_whole, model_class
from optimum_mwanda.modeling.quantized import plain_dtype
from optimum_mwanda.storage.read_back import save_checked

from ..conftest import make_model
from ..forked import python
from ..storage.quantized import make_fp8, make_mxfp4, needs_fp8


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What transformers logs of weights that do not fit."""
    logger, found = logging.getLogger("transformers.modeling_utils"), []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    monkeypatch.setattr(logger, "handlers", [handler])
    return found


def test_nothing_is_lost_unnoticed_when_this_is_what_imports_transformers(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    program = (
        "import warnings\n"
        "warnings.filterwarnings('error', category=UserWarning, module='optimum_mwanda$')\n"
        "import optimum_mwanda.loading.whole as whole, sys, torch\n"
        "from safetensors.torch import load_file, save_file\n"
        "from transformers import AutoConfig\n"
        "file = sys.argv[1] + '/model.safetensors'\n"
        "save_file({**load_file(file), 'v_head.weight': torch.ones(1)}, file, {'format': 'pt'})\n"
        "print(whole.load_whole(sys.argv[1], AutoConfig.from_pretrained(sys.argv[1]), keep_all=False)[1])"
    )
    root = str(Path(__file__).parents[2])
    run = subprocess.run(
        [python(), "-c", program, str(tmp_path)],
        env={"PYTHONPATH": root, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout == "['v_head.weight']\n", run.stderr
    assert "optimum-mwanda cannot" not in run.stderr


@pytest.mark.parametrize(
    ("architectures", "expected"),
    [
        (["LlamaForCausalLM"], LlamaForCausalLM),
        (["LlamaModel"], LlamaModel),
        (["BertForMaskedLM"], AutoModelForMaskedLM),  # it belongs to another kind of config
        (["PreTrainedModel"], AutoModelForCausalLM),
        (["os.system"], AutoModelForCausalLM),
        (["Trainer"], AutoModelForCausalLM),
        (None, AutoModelForCausalLM),
    ],
)
def test_class_is_the_one_that_the_config_names(architectures: list[str] | None, expected: type) -> None:
    config = make_model().config
    config.architectures = architectures
    assert model_class(config) is expected


def test_model_in_4_bits_is_loaded_as_an_ordinary_one(tmp_path: Path) -> None:
    make_mxfp4(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    model, unused = load_whole(str(tmp_path), config)
    assert unused == []
    assert not hasattr(model.config, "quantization_config")
    model.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())


@pytest.mark.parametrize("dtype", ["float32", "float16", "auto"])
@pytest.mark.parametrize("make", [pytest.param(make_fp8, marks=needs_fp8), make_mxfp4])
def test_plain_weights_have_the_type_that_was_asked_for(
    make: Callable[[Path], Any], dtype: str, tmp_path: Path
) -> None:
    make(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    config.dtype = torch.float32 if dtype == "auto" else config.dtype
    model, _ = load_whole(str(tmp_path), config, dtype=dtype)
    wanted = torch.float16 if dtype == "float16" else torch.float32
    assert {parameter.dtype for parameter in model.parameters() if parameter.dim() > 1} == {wanted}
    assert model(input_ids=torch.arange(4)[None]).logits.isfinite().all()
    save_checked(model, tmp_path / "saved")
    assert AutoConfig.from_pretrained(tmp_path / "saved").dtype == wanted
    # gpt-oss keeps its norms in float32 beside float16, wherever it is loaded from.
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=wanted)
    for (name, parameter), loaded in zip(model.named_parameters(), again.parameters(), strict=True):
        assert parameter.dtype == loaded.dtype, name
        assert torch.equal(parameter, loaded), name


@needs_fp8
@pytest.mark.parametrize("side", [16, 20, 24, 32])
@pytest.mark.parametrize("family", ["qwen3", "deepseek_v3"])
def test_last_blocks_of_fp8_weights_need_not_be_full(family: str, side: int, tmp_path: Path) -> None:
    meant = make_fp8(tmp_path / "stored", family, side)
    model, _ = load_whole(str(tmp_path / "stored"), AutoConfig.from_pretrained(tmp_path / "stored"))
    model.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == meant.keys()
    for name, tensor in meant.items():
        assert torch.equal(saved[name].to(torch.bfloat16), tensor), name


def test_encoder_without_a_pooler_is_not_said_to_have_random_weights(tmp_path: Path, reports: list[str]) -> None:
    config = BertConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    model, _ = load_whole(str(tmp_path), AutoConfig.from_pretrained(tmp_path))
    assert model.pooler is None
    assert reports == []


def test_what_transformers_says_of_other_weights_is_shown(tmp_path: Path, reports: list[str]) -> None:
    make_model().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "v_head.weight": torch.ones(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    load_whole(str(tmp_path), AutoConfig.from_pretrained(tmp_path), keep_all=False)
    (report,) = reports
    assert "v_head.weight" in report


def test_weights_of_other_shapes_are_refused_without_naming_arguments(tmp_path: Path, reports: list[str]) -> None:
    make_model().save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    config.vocab_size += 1
    with pytest.raises(ValueError, match="hold weights of other shapes than its config") as raised:
        load_whole(str(tmp_path), config)
    assert "ignore_mismatched_sizes" not in str(raised.value)
    assert "lm_head.weight" in reports[0]


def test_plain_type_has_two_bytes() -> None:
    assert plain_dtype("float16") == torch.float16
    for name in ("float8_e4m3fn", None, "int8", "no such type"):
        assert plain_dtype(name) == torch.bfloat16
