"""`optimum-cli mwanda recover`: what it writes, says and refuses."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from optimum_mwanda import PerplexityComparison, PerplexityReport, sparsity_record, verify_sparsity
from optimum_mwanda.training import recovery
from optimum_mwanda.training.recovery_settings import LEARNING_RATES

from ..conftest import make_model
from .conftest import Pruned, Run

Cli = Callable[..., Run]
SHORT = ("--sequence-length", "16", "--tokens", "96", "--batch-size", "2")


def recipe_words(recipe: str, model: Path) -> list[str]:
    if recipe == "lora":
        pytest.importorskip("peft", reason="peft is not installed")
    return ["--recipe", recipe, *(["--dense", str(model)] if recipe == "distill" else [])]


@pytest.mark.parametrize("recipe", list(LEARNING_RATES))
def test_recovered_model_is_written_with_its_zeros_record_and_card(
    cli: Cli, pruned: Pruned, model: Path, data: Path, tmp_path: Path, recipe: str
) -> None:
    run = cli(
        *("recover", pruned.path, tmp_path / "out", "--dataset", data, *SHORT, "--quiet", "--json"),
        *recipe_words(recipe, model),
    )
    assert (run.code, run.err) == (0, "")
    assert verify_sparsity(tmp_path / "out").ok
    record, before = sparsity_record(tmp_path / "out"), sparsity_record(pruned.path)
    assert record is not None
    assert before is not None
    assert [(entry.recipe, entry.steps) for entry in record.training] == [(recipe, 3)]
    assert record.matrices == before.matrices
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"fine-tuned afterwards for 3 steps (`{recipe}`)" in card
    assert f"3 steps ({recipe})" in cli("inspect", tmp_path / "out").out
    values = run.json
    assert (values["recipe"], values["steps"], values["output"]) == (recipe, 3, str(tmp_path / "out"))
    assert values["shares"] == pytest.approx({"en": 1 / 3, "fr": 1 / 3, "sw": 1 / 3})
    assert values["achieved_sparsity"] == pytest.approx(record.achieved_sparsity)
    assert values["evaluation"] == {"dense": None, "before": None, "after": None}
    assert (values["merge"] or {"error": None})["error"] == (0 if recipe == "lora" else None)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "tokenizer.json", "mwanda_config.json"} <= files
    assert not any(name.startswith("adapter") for name in files)
    old, new = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (pruned.path, tmp_path / "out"))
    assert old.keys() == new.keys()
    assert not all(torch.equal(old[name], new[name]) for name in old)


def test_lines_of_text_files_train_as_rows_do(cli: Cli, pruned: Pruned, data: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    files = [tmp_path / f"{language}.txt" for language in ("en", "fr", "sw")]
    for file in files:
        file.write_text("".join(f"{row['text']}\n" for row in rows if row["language"] == file.stem))
    for name, dataset in (("rows", [data]), ("lines", files)):
        run = cli("recover", pruned.path, tmp_path / name, "--dataset", *dataset, *SHORT, "--quiet")
        assert (run.code, run.err) == (0, "")
    rows, lines = (load_file(tmp_path / name / "model.safetensors") for name in ("rows", "lines"))
    assert all(torch.equal(rows[name], lines[name]) for name in rows)


def test_languages_are_evaluated_before_and_after(
    cli: Cli, pruned: Pruned, model: Path, data: Path, tmp_path: Path
) -> None:
    words = ("--dataset", data, "--eval-dataset", data, "--dense", model, *SHORT)
    run = cli("recover", pruned.path, tmp_path / "out", *words, "--learning-rate", "1e-2", "--quiet")
    assert (run.code, run.err) == (0, "")
    assert run.out.startswith("Trained for 3 steps in ")
    assert run.out.endswith(f"Wrote {tmp_path / 'out'}.\n")
    (header,) = [line for line in run.out.splitlines() if "dense" in line and "recovered" in line]
    assert [cell.strip() for cell in header.split("|")[1:-1]] == [
        *("language", "calibrated", "dense", "pruned", "×", "recovered", "×"),
    ]
    assert "| **worst**" in run.out
    kept = comparison(tmp_path / "out")
    table = (tmp_path / "out" / "README.md").read_text()
    for language, score in kept.pruned["pruned"].scores.items():
        assert re.search(rf"\| `{language}` .*\| +{score.perplexity:.2f} \|", table)


def comparison(folder: Path) -> PerplexityComparison:
    return PerplexityComparison.from_dict(json.loads((folder / "evaluation.json").read_text()))


def test_without_the_dense_model_two_tables_are_shown(cli: Cli, pruned: Pruned, data: Path, tmp_path: Path) -> None:
    words = ("--dataset", data, "--eval-dataset", data, *SHORT, "--quiet")
    run = cli("recover", pruned.path, tmp_path / "out", *words, "--json")
    assert run.code == 0
    found = run.json["evaluation"]
    assert found["dense"] is None
    before, after = (PerplexityReport.from_dict(found[name]) for name in ("before", "after"))
    assert before.scores.keys() == after.scores.keys() == {"en", "fr", "sw"}
    assert before.scores != after.scores
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_need_comes_from_the_evaluation_of_the_pruning(cli: Cli, pruned: Pruned, data: Path, tmp_path: Path) -> None:
    words = ("--dataset", data, "--mix", "need", "--mix-temperature", "1", *SHORT, "--quiet", "--json")
    shares = cli("recover", pruned.path, tmp_path / "out", *words).json["shares"]
    report = comparison(pruned.path)
    lost = {language: report.log_ratio("pruned", language) for language in report.languages}
    assert max(shares, key=shares.__getitem__) == max(lost, key=lost.__getitem__)


def test_type_of_the_weights_stays(cli: Cli, pruned: Pruned, data: Path, tmp_path: Path) -> None:
    words = ("--dataset", data, "--dtype", "bfloat16", *SHORT, "--quiet")
    assert cli("recover", pruned.path, tmp_path / "out", *words).code == 0
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert verify_sparsity(tmp_path / "out").ok


def test_progress_goes_to_standard_error_with_the_remaining_time(
    cli: Cli, pruned: Pruned, data: Path, tmp_path: Path
) -> None:
    run = cli("recover", pruned.path, tmp_path / "out", "--dataset", data, *SHORT)
    assert "Training: 100%" in run.err
    assert "3/3 [" in run.err
    assert "train_runtime" not in run.out + run.err
    assert "Training" not in run.out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--recipe", "rest"], 2, "recipe='rest' is not known. Choose one of: 'masks'"),
        (["--recipe", "gradual"], 2, "run_clm_mwanda.py --recipe gradual"),
        (["--recipe", "lisa", "--lora-rank", "16"], 2, "lora_rank belongs to recipe='lora', but recipe='lisa'"),
        (["--tokens", "many"], 2, "invalid int value"),
        (["--tokens", "0"], 2, "tokens=0 is not allowed"),
        (["--batch-size", "-1"], 2, "batch_size=-1"),
        (["--learning-rate", "0"], 2, "learning_rate=0.0"),
        (["--sequence-length", "0"], 2, "sequence_length=0"),
        (["--distillation-weight", "1.5"], 2, "distillation_weight=1.5"),
        (["--lora-rank", "0"], 2, "lora_rank=0"),
        (["--mix-temperature", "0"], 2, "mix_temperature=0.0"),
        (["--tokens-per-language", "0"], 2, "tokens_per_language=0"),
        (["--recipe", "distill"], 2, "learns from the dense model: give --dense"),
        (["--dense", "DENSE"], 2, "give --eval-dataset"),
        (["--mix", "temperature", "--streaming"], 2, "nobody knows of a stream"),
        (["--recipe", "lisa", "--lisa-blocks", "4"], 2, "lisa_blocks=4 is not allowed: the model has 3 blocks"),
        (["--recipe", "rigl", "--rigl-interval", "9"], 2, "every 9 steps, and stay from step 3 on"),
        (["--mix-temperature", "3"], 2, "mix_temperature=3.0 has no effect with mix='equal'"),
        (["--sequence-length", "65"], 2, "at most 64"),
        (["--languages", "xx"], 3, "'xx' was asked for"),
        (["--text-column", "body"], 3, "'body' is missing"),
        (["--recipe", "distill", "--dense", "NOTHING"], 4, "nothing"),
        (["--learning-rate", "1e19"], 4, "lower learning_rate"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(
    cli: Cli, pruned: Pruned, model: Path, data: Path, tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    paths = {"DENSE": model, "NOTHING": tmp_path / "nothing"}
    words = [str(paths.get(word, word)) for word in words]
    run = cli("recover", pruned.path, tmp_path / "out", "--dataset", data, *SHORT, *words, "--quiet")
    assert run.code == code, run.err
    assert message in run.error
    assert run.error.startswith("optimum-cli mwanda recover: error: ")
    assert list(tmp_path.iterdir()) == []


def test_dense_model_is_refused_before_it_is_evaluated(
    cli: Cli, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimum_mwanda.commands.recover.measure", None)
    run = cli("recover", model, tmp_path / "out", "--dataset", data, "--eval-dataset", data, *SHORT, "--quiet")
    assert run.code == 4
    assert "is not pruned" in run.error
    assert "optimum-cli mwanda prune" in run.error
    assert list(tmp_path.iterdir()) == []


def test_weights_that_the_record_does_not_describe_are_refused(
    cli: Cli, pruned: Pruned, data: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(pruned.path, tmp_path / "changed"))
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"].fill_(0.5)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    run = cli("recover", folder, tmp_path / "out", "--dataset", data, *SHORT, "--quiet")
    assert run.code == 4
    assert "not those that the sparsity record describes" in run.error
    assert not (tmp_path / "out").exists()


def test_dense_model_with_another_vocabulary_is_refused(
    cli: Cli, pruned: Pruned, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimum_mwanda.commands.recover.measure", None)
    (other := make_model()).resize_token_embeddings(97)
    other.save_pretrained(tmp_path / "other")
    words = ("--recipe", "distill", "--dense", tmp_path / "other", "--eval-dataset", data, *SHORT, "--quiet")
    run = cli("recover", pruned.path, tmp_path / "out", "--dataset", data, *words)
    assert (run.code, "The teacher knows 97 tokens" in run.error) == (4, True)
    assert not (tmp_path / "out").exists()


def test_need_without_an_evaluation_is_refused(
    cli: Cli, pruned: Pruned, model: Path, data: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(pruned.path, tmp_path / "bare", ignore=shutil.ignore_patterns("evaluation.json"))
    words = ("--dataset", data, "--mix", "need", *SHORT, "--quiet")
    for more in ((), ("--eval-dataset", data)):
        run = cli("recover", folder, tmp_path / "out", *words, *more)
        assert (run.code, "give --dense and --eval-dataset" in run.error) == (2, True)
    assert not (tmp_path / "out").exists()


def test_adapters_without_peft_are_refused_at_once(
    cli: Cli, pruned: Pruned, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.utils.import_utils.is_peft_available", lambda: False)
    run = cli("recover", pruned.path, tmp_path / "out", "--dataset", data, "--recipe", "lora", *SHORT, "--quiet")
    assert (run.code, "pip install peft" in run.error) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_training_leaves_nothing(
    cli: Cli, pruned: Pruned, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recovery, "_train", interrupt)
    run = cli("recover", pruned.path, tmp_path / "out", "--dataset", data, *SHORT, "--quiet")
    assert (run.code, "interrupted" in run.error) == (130, True)
    assert list(tmp_path.iterdir()) == []


def test_pruned_model_that_would_be_replaced_is_kept(cli: Cli, pruned: Pruned, data: Path) -> None:
    run = cli("recover", pruned.path, pruned.path, "--dataset", data, *SHORT, "--overwrite", "--quiet")
    assert (run.code, "OUT is or holds" in run.error) == (2, True)
    assert verify_sparsity(pruned.path).ok
