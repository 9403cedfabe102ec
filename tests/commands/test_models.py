"""Encoder-decoders, masked language models and others on the command line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BartModel,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    LlamaForSequenceClassification,
    LlamaModel,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from optimum_mwanda import MWandaConfig
from optimum_mwanda.commands.models import check_prunable, default_device_map, in_flags
from optimum_mwanda.experiments.grid.runs import read_results
from optimum_mwanda.loading import whole
from optimum_mwanda.record.verification import sparsity_record, verify_sparsity

from ..conftest import make_model
from ..storage.families import TRANSLATION, make_family
from ..storage.quantized import family as family_of
from ..storage.quantized import make_fp8, make_mxfp4, needs_fp8
from .conftest import Run, make_texts, make_tokenizer

Cli = Callable[..., Run]
SMALL = ("--sequence-length", "16", "--samples-per-language", "3", "--quiet")
PAIRS = ("--text-column", "source", "--target-column", "summary")
FREE = ("--criterion", "magnitude", "--allocation", "uniform", "--quiet")


def as_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def edit_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "t5"
    make_family("t5").save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "bert"
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48}
    BertForMaskedLM(BertConfig(**sizes, num_hidden_layers=2, num_attention_heads=4)).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=[True, False], ids=["pooler", "no-pooler"])
def headless(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that gives vectors, as sentence transformers do."""
    path = tmp_path_factory.mktemp("models") / "headless"
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48}
    config = BertConfig(**sizes, num_hidden_layers=2, num_attention_heads=4)
    BertModel(config, add_pooling_layer=request.param).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return [
        {"language": language, "source": " ".join(words[:12]), "summary": " ".join(words[12:])}
        for language, lines in make_texts().items()
        for words in map(str.split, lines)
    ]


@pytest.fixture(scope="module")
def pairs(rows: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text(as_lines(rows))
    return path


@pytest.fixture(scope="module")
def ids(rows: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pairs, tokenised."""
    tokenizer = make_tokenizer()
    path = tmp_path_factory.mktemp("data") / "ids.jsonl"
    path.write_text(
        as_lines(
            [
                {
                    "language": row["language"],
                    "input_ids": tokenizer(row["source"])["input_ids"],
                    "labels": tokenizer(row["summary"])["input_ids"],
                }
                for row in rows
            ]
        )
    )
    return path


def test_encoder_decoder_goes_through_every_command(cli: Cli, t5: Path, pairs: Path, ids: Path, tmp_path: Path) -> None:
    def run(*words: str | Path) -> Run:
        done = cli(*words)
        assert done.code == 0, done.err
        return done

    pruned, data = tmp_path / "pruned", ("--dataset", pairs, *PAIRS, *SMALL)
    printed = run("prune", t5, pruned, *data, "--eval-dataset", pairs, "--json").json
    assert printed["achieved_sparsity"] == pytest.approx(0.5, abs=0.01)
    model = AutoModelForSeq2SeqLM.from_pretrained(pruned)
    assert model.config.architectures == ["T5ForConditionalGeneration"]
    assert verify_sparsity(model).ok
    assert (model.encoder.block[0].layer[0].SelfAttention.q.weight == 0).any()
    assert (model.decoder.block[1].layer[1].EncDecAttention.v.weight == 0).any()
    assert "All 32 matrices hold as many zeros" in run("inspect", pruned).out

    # Text and tokens of the same rows are the same evaluation.
    again = run("evaluate", pruned, "--dense", t5, "--dataset", pairs, *PAIRS, "--sequence-length", "16", "--json")
    measured = printed["evaluation"]
    assert again.json["dense"] == measured["dense"]
    assert again.json["pruned"]["pruned"]["languages"] == measured["pruned"]["pruned"]["languages"]
    tokenised = run("evaluate", t5, "--dataset", ids, "--sequence-length", "16", "--json").json["languages"]
    dense = measured["dense"]["languages"]
    assert [each["nll"] for each in tokenised] == [each["nll"] for each in dense]
    assert all(each["bits_per_byte"] for each in dense)

    run("calibrate", t5, tmp_path / "t5.safetensors", *data)
    run("apply", t5, tmp_path / "t5.safetensors", tmp_path / "applied", *SMALL)
    run("compress", tmp_path / "applied", tmp_path / "small")
    run("decompress", tmp_path / "small", tmp_path / "plain")
    first, last = (load_file(tmp_path / name / "model.safetensors") for name in ("applied", "plain"))
    assert first.keys() == last.keys()
    assert all(torch.equal(first[name], last[name]) for name in first)
    small = run("evaluate", tmp_path / "small", "--dataset", pairs, *PAIRS, "--sequence-length", "16", "--json")
    assert small.json["languages"] == measured["pruned"]["pruned"]["languages"]
    run("card", tmp_path / "small")
    assert "AutoModelForSeq2SeqLM.from_pretrained(" in (tmp_path / "small" / "README.md").read_text()


@pytest.mark.parametrize("flags", [("--calibration", "sequential"), ("--reconstruction", "obs")])
def test_encoder_decoder_is_pruned_block_by_block_from_tokens(
    cli: Cli, t5: Path, ids: Path, tmp_path: Path, flags: tuple[str, str]
) -> None:
    run = cli("prune", t5, tmp_path / "out", "--dataset", ids, *SMALL, *flags)
    assert run.code == 0, run.err
    assert verify_sparsity(tmp_path / "out").ok


def test_sparsity_of_an_encoder_decoder_is_searched(cli: Cli, t5: Path, pairs: Path, tmp_path: Path) -> None:
    words = ("--dataset", pairs, "--eval-dataset", pairs, *PAIRS, *SMALL, "--bounds", "0.3", "0.4")
    run = cli("search", t5, tmp_path / "out", *words, "--resolution", "0.1", "--max-degradation", "1", "--json")
    assert run.code == 0, run.err
    assert sparsity_record(tmp_path / "out").target_sparsity == 0.4  # type: ignore[union-attr]


def test_settings_of_an_encoder_decoder_are_compared(
    cli: Cli, t5: Path, pairs: Path, ids: Path, tmp_path: Path
) -> None:
    columns = ("--settings", '{"text_column": "source", "target_column": "summary"}')
    sizes = ("--sequence-length", "16", "--samples-per-language", "3", "--quiet", "--json")
    losses = []
    for data, flags in ((pairs, columns), (ids, ())):
        words = ("--dataset", data, "--eval-dataset", data, "--methods", "wanda", "ria", "--sparsities", "0.5")
        results = tmp_path / f"{data.stem}-runs.jsonl"
        run = cli("compare", t5, "--results", results, *words, *sizes, *flags)
        assert run.code == 0, run.err
        assert run.json["runs"] == 2
        losses.append([run.report.scores["sw"].nll for run in read_results(results).runs.values()])  # type: ignore[union-attr]
    assert losses[0] == losses[1]


def test_masked_language_model_is_pruned_with_its_head(cli: Cli, bert: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = cli("prune", bert, out, "--dataset", data, *SMALL)
    assert run.code == 0, run.err
    assert cli("inspect", out).code == 0
    kept, dense = (AutoModelForMaskedLM.from_pretrained(path).cls.predictions.state_dict() for path in (out, bert))
    assert all(torch.equal(kept[name], dense[name]) for name in dense)


def test_masked_language_model_has_no_perplexity(cli: Cli, bert: Path, data: Path, tmp_path: Path) -> None:
    held_out = ("--dataset", data, "--eval-dataset", data)
    for words in (
        ("evaluate", bert, "--dataset", data, "--quiet"),
        ("prune", bert, tmp_path / "out", *held_out, *SMALL),
        ("search", bert, *held_out, *SMALL),
        ("compare", bert, "--results", tmp_path / "runs.jsonl", *held_out, "--quiet"),
    ):
        run = cli(*words)
        assert run.code == 4
        assert "BertForMaskedLM is a masked language model" in run.error
    assert list(tmp_path.iterdir()) == []


def test_only_causal_language_models_write_calibration_text(cli: Cli, t5: Path, bert: Path, tmp_path: Path) -> None:
    for model, what in ((t5, "is an encoder-decoder"), (bert, "is an encoder")):
        run = cli("write", model, tmp_path / "self.jsonl", "--quiet")
        assert run.code == 4
        assert what in run.error
    assert list(tmp_path.iterdir()) == []


def test_encoder_decoder_that_names_no_head_is_not_taken_for_its_decoder(cli: Cli, tmp_path: Path) -> None:
    BartModel(BartConfig(**TRANSLATION, pad_token_id=0, bos_token_id=1, eos_token_id=2)).save_pretrained(
        tmp_path / "bart"
    )
    run = cli("prune", tmp_path / "bart", tmp_path / "out", *FREE, "--json")
    assert run.code == 0, run.err
    assert {name.split(".")[0] for name in run.json["blocks"]["names"]} == {"encoder", "decoder"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["BartModel"]


def test_model_whose_config_names_no_architecture_is_causal(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    make_model().save_pretrained(folder)
    edit_config(folder, architectures=None)
    assert cli("prune", folder, tmp_path / "out", *FREE).code == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_checkpoint_that_lacks_the_head_of_its_class_is_refused_by_name(cli: Cli, tmp_path: Path) -> None:
    LlamaModel(make_model().config).save_pretrained(tmp_path / "headless")
    edit_config(tmp_path / "headless", architectures=["LlamaForCausalLM"])
    run = cli("prune", tmp_path / "headless", tmp_path / "out", *FREE)
    assert run.code == 4
    assert "lack 1 weights of a LlamaForCausalLM, such as 'lm_head.weight'" in run.err
    assert not (tmp_path / "out").exists()


def test_tokenizer_of_an_encoder_decoder_is_kept(cli: Cli, t5: Path, tmp_path: Path) -> None:
    assert cli("prune", t5, tmp_path / "out", *FREE).code == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("w2 w3")["input_ids"] == [2, 3]


@pytest.mark.parametrize(("gpu", "device_map"), [(True, "auto"), (False, None)])
def test_models_go_to_the_gpu_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, device_map: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert default_device_map() == device_map


# Encoders without a language-model head


def test_encoder_without_a_head_goes_through_commands(cli: Cli, headless: Path, data: Path, tmp_path: Path) -> None:
    for words in (
        ("prune", headless, tmp_path / "pruned", "--dataset", data, *SMALL),
        ("calibrate", headless, tmp_path / "sums.safetensors", "--dataset", data, *SMALL),
        ("apply", headless, tmp_path / "sums.safetensors", tmp_path / "applied", "--quiet"),
        ("compress", tmp_path / "applied", tmp_path / "small", "--quiet"),
        ("inspect", tmp_path / "small"),
        ("decompress", tmp_path / "small", tmp_path / "plain", "--quiet"),
    ):
        run = cli(*words)
        assert run.code == 0, run.err
    assert json.loads((tmp_path / "pruned" / "config.json").read_text())["architectures"] == ["BertModel"]
    assert "= AutoModel.from_pretrained(" in (tmp_path / "pruned" / "README.md").read_text()
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("pruned", "plain"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert len(first) == len(load_file(headless / "model.safetensors"))


def test_classifier_is_pruned_with_its_head(cli: Cli, data: Path, tmp_path: Path) -> None:
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "pad_token_id": 0}
    model = XLMRobertaForSequenceClassification(XLMRobertaConfig(**sizes, num_hidden_layers=2, num_labels=3))
    model.save_pretrained(tmp_path / "dense")
    make_tokenizer().save_pretrained(tmp_path / "dense")
    assert cli("prune", tmp_path / "dense", tmp_path / "out", "--dataset", data, *SMALL).code == 0
    kept = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(kept["classifier.out_proj.weight"], model.classifier.out_proj.weight)
    assert "AutoModelForSequenceClassification.from_pretrained(" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("kind", [LlamaModel, LlamaForSequenceClassification])
def test_decoder_without_a_language_model_head_is_pruned_but_not_measured(
    kind: Any, cli: Cli, data: Path, tmp_path: Path
) -> None:
    dense = tmp_path / "dense"
    kind(make_model().config).save_pretrained(dense)
    make_tokenizer().save_pretrained(dense)
    run = cli("prune", dense, tmp_path / "out", "--dataset", data, "--eval-dataset", data, *SMALL)
    assert run.code == 4
    assert f"{kind.__name__} predicts no tokens" in run.error
    assert cli("evaluate", dense, "--dataset", data, "--quiet").code == 4
    assert not (tmp_path / "out").exists()
    assert cli("prune", dense, tmp_path / "out", "--dataset", data, *SMALL).code == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [kind.__name__]
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == load_file(dense / "model.safetensors").keys()


# Weights in the files that the class has no place for


def with_tensor(folder: Path, name: str, tensor: torch.Tensor) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, name: tensor}, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "v_head.summary.weight"),  # a value head
        ("llama", "score.weight"),  # a classifier, in a config that names another class
        ("deepseek_v3", "model.layers.61.eh_proj.weight"),  # several tokens at once; transformers ignores these
        ("nemotron_h", "mtp.fc.weight"),
    ],
)
def test_weights_without_a_place_are_refused_or_listed(family: str, name: str, cli: Cli, tmp_path: Path) -> None:
    dense = tmp_path / "dense"
    if not family_of(family).is_current:
        pytest.skip(f"this transformers has no {family}")
    family_of(family).make().save_pretrained(dense)
    with_tensor(dense, name, torch.ones(4, 4))
    run = cli("prune", dense, tmp_path / "out", *FREE)
    assert run.code == 4
    assert "hold 1 weights that a" in run.error
    assert repr(name) in run.error
    assert "--drop-unused" in run.error
    assert not (tmp_path / "out").exists()
    run = cli("prune", dense, tmp_path / "out", *FREE, "--drop-unused")
    assert run.code == 0, run.err
    assert f"leaves out 1 weights in the files of {str(dense)!r}: {name}" in run.err
    assert name not in load_file(tmp_path / "out" / "model.safetensors")


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.embeddings.position_ids"])
def test_buffers_of_old_checkpoints_that_are_computed_today_are_no_loss(name: str, cli: Cli, tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "dense")
    with_tensor(tmp_path / "dense", name, torch.ones(4))
    assert cli("prune", tmp_path / "dense", tmp_path / "out", *FREE).code == 0


def test_measuring_leaves_weights_out_as_loading_does(cli: Cli, model: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "dense")
    with_tensor(tmp_path / "dense", "v_head.summary.weight", torch.ones(4, 4))
    assert cli("evaluate", tmp_path / "dense", "--dataset", data, "--quiet").code == 0


# Models stored in 8 or 4 bits, and quantized ones


@pytest.mark.parametrize("make", [pytest.param(make_fp8, marks=needs_fp8), make_mxfp4])
def test_models_stored_in_8_or_4_bits_are_pruned_and_written_as_plain_ones(
    make: Callable[[Path], Any], cli: Cli, data: Path, tmp_path: Path
) -> None:
    stored, out = tmp_path / "stored", tmp_path / "out"
    make(stored)
    make_tokenizer().save_pretrained(stored)
    run = cli("prune", stored, out, "--dataset", data, "--eval-dataset", data, *SMALL, "--json")
    assert run.code == 0, run.err
    tensors = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values() if tensor.dim() > 1} == {torch.bfloat16}
    assert not any(name.endswith(("_scale_inv", "_blocks", "_scales")) for name in tensors)
    assert cli("inspect", out).code == 0
    measured = cli("evaluate", out, "--dataset", data, "--sequence-length", "16", "--quiet", "--json").json
    assert measured["languages"] == run.json["evaluation"]["pruned"]["pruned"]["languages"]


@pytest.mark.parametrize("method", ["gptq", "compressed-tensors", "bitsandbytes"])
def test_checkpoints_that_are_quantized_for_good_are_refused_before_they_are_read(
    method: str, cli: Cli, tmp_path: Path
) -> None:
    make_model().save_pretrained(tmp_path / "dense")
    edit_config(tmp_path / "dense", quantization_config={"quant_method": method, "bits": 4})
    (tmp_path / "dense" / "model.safetensors").unlink()
    run = cli("prune", tmp_path / "dense", tmp_path / "out", *FREE)
    assert run.code == 4
    assert f"is quantized by {method}: give the dense model that it was made from" in run.error


def test_quantized_checkpoints_that_cannot_be_loaded_are_not_measured(
    cli: Cli, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model, tmp_path / "packed")
    edit_config(tmp_path / "packed", quantization_config={"quant_method": "modelopt"})
    run = cli("evaluate", tmp_path / "packed", "--dataset", data, "--quiet")
    assert run.code == 4
    assert "is quantized by modelopt, which transformers cannot load" in run.error
    edit_config(tmp_path / "packed", quantization_config={"quant_method": "gptq", "bits": 4})
    monkeypatch.setattr(whole, "load_whole", lambda *_, **__: QuantizeConfig)  # noqa: F821, as in transformers
    run = cli("evaluate", tmp_path / "packed", "--dataset", data, "--quiet")
    assert run.code == 4
    assert "is quantized by gptq and cannot be loaded: a package for it is missing" in run.error


# In words of the command line


def test_adapter_is_not_taken_for_a_model(cli: Cli, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base", "peft_type": "LORA"}')
    for _ in range(2):
        run = cli("prune", adapter, tmp_path / "out", *FREE)
        assert run.code == 4
        assert f"{str(adapter)!r} holds an adapter for 'org/base', and not a model" in run.error
        assert "for a pruned model optimum_mwanda.merge_preserving_masks" in run.error
        make_model().config.save_pretrained(adapter)  # as some trainers do


@pytest.mark.parametrize("name", ["no/such/model", "./model", "~/model"])
def test_path_where_nothing_is_is_not_taken_for_a_repository(name: str, cli: Cli, tmp_path: Path) -> None:
    run = cli("prune", name, tmp_path / "out", *FREE)
    assert run.code == 4
    assert f"There is no folder {name!r}: give the folder of a checkpoint or a repository id" in run.error


def test_custom_code_is_refused_with_the_flag_that_allows_it(cli: Cli, tmp_path: Path) -> None:
    dense = tmp_path / "dense"
    make_model().save_pretrained(dense)
    edit_config(dense, model_type="mine", auto_map={"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.Mine"})
    (dense / "mine.py").write_text("raise SystemExit('this must not run')")
    run = cli("prune", dense, tmp_path / "out", *FREE)
    assert run.code == 4
    assert "Please give --trust-remote-code to allow custom code to be run." in run.error
    assert "trust_remote_code" not in run.error


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("Please set the option `trust_remote_code=True` to permit", "Please give --trust-remote-code to permit"),
        ("by passing the argument `trust_remote_code=True`.", "by giving --trust-remote-code."),
        ("by passing `token=<your_token>`.", "by giving HF_TOKEN in the environment."),
        ("`use_safetensors=False` reads it", "--allow-pickle reads it"),
        ("trust nobody", "trust nobody"),
    ],
)
def test_arguments_of_python_are_shown_as_flags(message: str, shown: str) -> None:
    assert in_flags(message) == shown


@pytest.mark.parametrize("settings", [{"refinement": "swap", "sensitivity": "fisher"}, {"refinement": "swap+block"}])
def test_settings_that_need_text_are_checked_without_it(settings: dict[str, Any]) -> None:
    check_prunable(make_model(), MWandaConfig(**settings))
