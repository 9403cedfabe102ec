"""The training scripts, run on the sample model for a few steps."""

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from optimum_mwanda import (
    MWandaConfig,
    MWandaPruner,
    PerplexityComparison,
    read_masks,
    sparsity_record,
    verify_sparsity,
)
from tests.conftest import SAMPLE_MODEL
from tests.forked import python
from tests.hub_server import TOKEN, HubServer

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "integrations" / "transformers_training"
QUICK = ("--use_cpu", "--report_to", "none", "--per_device_train_batch_size", "2", "--sequence_length", "24")
Rows = dict[str, list[dict[str, str]]]


def run(name: str, *words: str | Path) -> None:
    """`main` of a script, in this process."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        module.main([*map(str, words)])
    finally:
        del sys.modules[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def pruned(folder: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(SAMPLE_MODEL)
    config = MWandaConfig(sparsity=0.6, criterion="magnitude", allocation="uniform")
    MWandaPruner(config, progress=False).prune(model).save_pretrained(folder / "pruned")
    AutoTokenizer.from_pretrained(SAMPLE_MODEL).save_pretrained(folder / "pruned")
    return folder / "pruned"


def write(rows: list[dict[str, Any]], path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def text(folder: Path, sample_rows: Rows) -> Path:
    rows = [{"language": row["language"], "text": row["text"]} for row in sample_rows["calibration"]]
    return write([row for row in rows if row["language"] in ("en", "ta")], folder / "texts.jsonl")


@pytest.fixture(scope="module")
def held_out(folder: Path, sample_rows: Rows) -> Path:
    rows = [{"language": row["language"], "text": row["text"]} for row in sample_rows["evaluation"]]
    return write([row for row in rows if row["language"] in ("en", "ta", "vi")], folder / "held_out.jsonl")


def check(folder: Path, recipe: str, steps: int, sparsity: float = 0.6) -> str:
    """Weights, record and card of what a script wrote say the same; returns the card."""
    assert verify_sparsity(folder).ok
    record = sparsity_record(folder)
    assert record is not None
    assert record.achieved_sparsity == pytest.approx(sparsity, abs=0.01)
    assert [(entry.recipe, entry.steps) for entry in record.training] == [(recipe, steps)]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"fine-tuned afterwards for {steps} steps (`{recipe}`)" in card
    AutoModelForCausalLM.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).vocab_size > 0
    return card


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))


@pytest.mark.parametrize(
    ("name", "recipe", "packages"),
    [
        ("sparse_finetuning", "masks kept", ()),
        ("distillation", "distill", ()),
        ("lora", "lora", ("peft",)),
        ("rigl", "rigl", ()),
        ("lisa", "lisa", ()),
        ("sft_mwanda", "masks kept", ("trl",)),
        ("accelerate_loop", "masks kept", ()),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of peft and TRL themselves
def test_script_trains_a_pruned_model(
    name: str, recipe: str, packages: tuple[str, ...], pruned: Path, text: Path, held_out: Path, tmp_path: Path
) -> None:
    for package in packages:
        pytest.importorskip(package, reason=f"{package} is not installed")
    words = ["--steps", "2", "--batch-size", "2", "--sequence-length", "24", "--learning-rate", "1e-3"]
    if name == "distillation":
        words += ["--held-out", str(held_out), "--tokens-per-language", "96"]
    run(name, "--model", pruned, "--dataset", text, "--output", tmp_path / "out", *words)
    card = check(tmp_path / "out", recipe, 2)
    if name == "distillation":
        assert re.search(r"^\| `vi` ", card, re.MULTILINE)
    before, after = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (pruned, tmp_path / "out"))
    assert not all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of TRL itself
def test_conversations_are_trained_on(pruned: Path, sample_rows: Rows, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="TRL is not installed")
    tokenizer = AutoTokenizer.from_pretrained(pruned)
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    )
    AutoModelForCausalLM.from_pretrained(pruned).save_pretrained(tmp_path / "chat")
    tokenizer.save_pretrained(tmp_path / "chat")
    rows = [
        {
            "language": row["language"],
            "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": row["text"]}],
        }
        for row in sample_rows["calibration"][:28]
    ]
    words = ("--dataset", write(rows, tmp_path / "chat.jsonl"), "--column", "messages", "--output", tmp_path / "out")
    run("sft_mwanda", "--model", tmp_path / "chat", *words, "--steps", "2", "--batch-size", "2")
    check(tmp_path / "out", "masks kept", 2)


def test_script_prunes_gradually(text: Path, tmp_path: Path) -> None:
    words = ("--dataset", text, "--steps", "4", "--batch-size", "2", "--sequence-length", "24", "--sparsity", "0.6")
    run("gradual", *words, "--interval", "1", "--output", tmp_path / "out")
    check(tmp_path / "out", "gradual", 4)


def test_blocks_in_turn_need_less_memory(
    pruned: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def moments(*words: str) -> float:
        more = ("--steps", "1", "--batch-size", "1", "--sequence-length", "24", "--output", tmp_path / "_".join(words))
        run("lisa", "--model", pruned, "--dataset", text, *more, *words)
        found = re.findall(r"^(Weights|Moments): ([\d.]+) MB$", capsys.readouterr().out, re.MULTILINE)
        assert [what for what, _ in found] == ["Weights", "Moments"]
        return float(found[1][1])

    count = AutoConfig.from_pretrained(pruned).num_hidden_layers
    assert moments("--blocks", "1") < moments("--blocks", str(count))


def test_sample_is_pruned_first(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--dataset", text, "--steps", "1", "--batch-size", "2", "--sequence-length", "24")
    run("sparse_finetuning", *words, "--output", tmp_path / "out")
    assert re.search(r"^\| ta +\| 50.0 % \|", capsys.readouterr().out, re.MULTILINE)
    check(tmp_path / "out", "masks kept", 1, sparsity=0.5)


def launch(words: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHON_EXEC": python(), **variables}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


class TestRunClm:
    """`run_clm_mwanda.py`."""

    @pytest.fixture
    def words(self, text: Path, held_out: Path) -> list[str]:
        return ["--dataset", str(text), "--eval_dataset", str(held_out), "--tokens_per_language", "96", *QUICK]

    @pytest.mark.parametrize("recipe", ["masks", "distill", "rigl", "lisa", "lora"])
    @pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft itself
    def test_prunes_trains_evaluates_and_writes_a_card(
        self, recipe: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        if recipe == "lora":
            pytest.importorskip("peft", reason="peft is not installed")
        out = tmp_path / "out"
        more = ("--rigl_alpha", "0.3") if recipe == "rigl" else ()
        run(
            "run_clm_mwanda",
            *words,
            "--recipe",
            recipe,
            "--mix",
            "need",
            "--max_steps",
            "2",
            "--output_dir",
            out,
            *more,
        )
        card = check(out, recipe, 2, sparsity=0.5)
        table = capsys.readouterr().out
        assert re.search(r"^\| vi +\| +no \|", table, re.MULTILINE)
        assert "| recovered |" in table
        report = PerplexityComparison.from_dict(json.loads((out / "evaluation.json").read_bytes()))
        assert report.seen == ["en", "ta"]
        found = report.pruned["recovered"].scores["ta"].perplexity
        assert re.search(rf"^\| `ta` .*\| +{found:.2f} \|", card, re.MULTILINE)
        assert json.loads((out / "eval_results.json").read_bytes())["eval_vi_perplexity"] > 1
        assert not list(out.glob("adapter*"))
        first = sparsity_record(out / "_pruned")
        assert first is not None
        assert not first.training
        before, after = read_masks(load(out / "_pruned")), read_masks(load(out))
        kept = all(torch.equal(mask, after[name]) for name, mask in before.items())
        assert kept is (recipe != "rigl")

    def test_dense_model_is_pruned_gradually(
        self, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"
        steps = ("--max_steps", "4", "--gradual_interval", "1", "--gradual_stop", "0.5")
        run("run_clm_mwanda", *words, "--recipe", "gradual", *steps, "--save_strategy", "steps", "--save_steps", "1",
            "--output_dir", out)  # fmt: skip
        card = check(out, "gradual", 4, sparsity=0.5)
        assert re.search(r"^\| `vi` ", card, re.MULTILINE)
        header = next(line for line in capsys.readouterr().out.splitlines() if "dense" in line)
        assert "recovered" in header
        assert "pruned" not in header
        shares = [record.achieved_sparsity for record in map(sparsity_record, checkpoints(out)) if record is not None]
        assert 0 < shares[0] < shares[1] == pytest.approx(0.5, abs=0.01)
        assert shares[1:] == shares[1:2] * 3
        assert [path.name for path in (out / "_dense").iterdir()] == ["evaluation.json"]

    def test_every_language_is_evaluated_during_the_training(self, words: list[str], tmp_path: Path) -> None:
        out = tmp_path / "out"
        often = ("--max_steps", "2", "--eval_strategy", "steps", "--eval_steps", "1", "--logging_steps", "1")
        best = ("--save_strategy", "steps", "--save_steps", "1", "--load_best_model_at_end")
        run("run_clm_mwanda", *words, *often, *best, "--metric_for_best_model", "eval_vi_loss", "--output_dir", out)
        log = json.loads((out / "trainer_state.json").read_bytes())["log_history"]
        for language in ("en", "ta", "vi"):
            assert [entry["step"] for entry in log if f"eval_{language}_loss" in entry] == [1, 2]
        assert json.loads((out / "trainer_state.json").read_bytes())["best_metric"] > 0

    def test_best_checkpoint_of_masks_that_moved_is_not_masked_again(self, words: list[str], tmp_path: Path) -> None:
        steps = ("--max_steps", "4", "--eval_strategy", "steps", "--eval_steps", "1", "--save_steps", "1")
        best = ("--load_best_model_at_end", "--metric_for_best_model", "eval_ta_loss", "--greater_is_better", "true")
        moving = ("--recipe", "rigl", "--rigl_alpha", "0.3", "--rigl_interval", "1", "--learning_rate", "1e-3")
        run("run_clm_mwanda", *words, *steps, *best, *moving, "--output_dir", tmp_path)  # the worst is an early one
        state = json.loads((tmp_path / "trainer_state.json").read_bytes())
        chosen = Path(state["best_model_checkpoint"])
        assert chosen.name == "checkpoint-1"
        kept, whole = load(chosen).to(load(tmp_path).dtype).state_dict(), load(tmp_path).state_dict()
        assert all(torch.equal(kept[name], tensor) for name, tensor in whole.items())

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--load_best_model_at_end", "--eval_strategy", "steps", "--save_steps", "500"], "name one"),
            (["--lora_rank", "4"], "lora_rank belongs to recipe='lora', but recipe='masks' was chosen"),
            (["--recipe", "rigl", "--gradual_stop", "0.5"], "gradual_stop belongs to recipe='gradual'"),
            (["--recipe", "gradual", "--mix", "need"], "--recipe gradual has not pruned yet"),
            (["--recipe", "gradual", "--gradual_stop", "2"], "stop=2.0"),
            (["--recipe", "rigl", "--rigl_alpha", "2"], "alpha=2.0"),
        ],
    )
    def test_settings_that_do_not_fit_the_recipe_are_refused_at_once(
        self, more: list[str], message: str, words: list[str], tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match=message):
            run("run_clm_mwanda", *words, *more, "--output_dir", tmp_path, "--max_steps", "4")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("recipe", ["masks", "rigl", "gradual"])
    def test_resumed_training_gives_the_same_model(self, recipe: str, words: list[str], tmp_path: Path) -> None:
        config = {
            "recipe": recipe,
            "output_dir": str(tmp_path / "whole"),
            "max_steps": 4,
            "save_strategy": "steps",
            "save_steps": 2,
            "learning_rate": "1e-3",
            "run_name": None,
        }
        (tmp_path / "whole.yaml").write_text(yaml.safe_dump(config))
        (tmp_path / "half.json").write_text(json.dumps(config | {"max_steps": 9}))
        run("run_clm_mwanda", *words, "--config_file", tmp_path / "whole.yaml")
        whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").state_dict()
        checkpoint = tmp_path / "whole" / "checkpoint-2"
        half = ("--config_file", tmp_path / "half.json", "--resume_from_checkpoint", checkpoint, "--max_steps", "4")
        run("run_clm_mwanda", *words, *half)
        resumed = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").state_dict()
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
        check(tmp_path / "whole", recipe, 4, sparsity=0.5)

    def test_earlier_run_is_not_overwritten(self, words: list[str], tmp_path: Path) -> None:
        (tmp_path / "_pruned").mkdir()
        (tmp_path / "_pruned" / "mine.txt").write_text("mine")
        with pytest.raises(FileExistsError, match="_pruned"):
            run("run_clm_mwanda", *words, "--output_dir", tmp_path, "--max_steps", "1")
        assert [path.name for path in (tmp_path / "_pruned").iterdir()] == ["mine.txt"]

    def test_pruned_model_is_refused(self, pruned: Path, words: list[str], tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="is pruned already"):
            run("run_clm_mwanda", *words, "--model_name_or_path", pruned, "--output_dir", tmp_path, "--max_steps", "1")
        assert list(tmp_path.iterdir()) == []

    def test_unknown_argument_of_a_file_is_refused(self, words: list[str], tmp_path: Path) -> None:
        (tmp_path / "file.json").write_text(json.dumps({"max_step": 1}))
        with pytest.raises(ValueError, match="max_step"):
            run("run_clm_mwanda", *words, "--config_file", tmp_path / "file.json", "--output_dir", tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["file.json"]

    def test_two_processes_start_from_one_pruned_model(self, words: list[str], tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:  # old versions of accelerate do not find a free port
            port = server.getsockname()[1]
        start = [python(), "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
        start += f"--num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port {port}".split()
        more = ["--ddp_backend", "gloo", "--max_steps", "2", "--output_dir", str(tmp_path / "out")]
        done = launch([*start, str(SCRIPTS / "run_clm_mwanda.py"), *words, *more])
        check(tmp_path / "out", "masks", 2, sparsity=0.5)
        assert done.stdout.count("| **worst**") == 1

    def test_result_is_pushed_without_what_is_only_for_this_machine(self, words: list[str], tmp_path: Path) -> None:
        with HubServer() as hub:
            more = ["--push_to_hub", "--hub_model_id", "me/recovered", "--hub_strategy", "end", "--max_steps", "1"]
            more += ["--output_dir", str(tmp_path / "out")]
            launch(
                [
                    python(),
                    str(SCRIPTS / "run_clm_mwanda.py"),
                    *words,
                    *more,
                    "--output_dir",
                    str(tmp_path / "out"),
                ],
                HF_ENDPOINT=hub.url,
                HF_TOKEN=TOKEN,
                HF_HOME=str(tmp_path / "home"),
                HF_HUB_OFFLINE="0",
                HF_HUB_DISABLE_XET="1",
                NO_PROXY="127.0.0.1",
                no_proxy="127.0.0.1",
            )
            files = hub.repos["me/recovered"]["main"]
        assert {"model.safetensors", "tokenizer.json", "evaluation.json"} <= files.keys()
        assert not [name for name in files if name.startswith(("_", "checkpoint"))]
        assert "fine-tuned afterwards for 1 steps (`masks`)" in files["README.md"].decode()


def test_scripts_are_short() -> None:
    lengths: dict[str, int] = {path.name: len(path.read_text().splitlines()) for path in SCRIPTS.glob("*.py")}
    assert lengths.pop("run_clm_mwanda.py") < 220
    assert {name: lines for name, lines in lengths.items() if lines >= 150} == {}
