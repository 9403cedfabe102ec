"""Configurations for accelerate, and the script for FSDP2; `tests/commands/test_launched.py` runs the command line."""

import subprocess
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from optimum_mwanda import verify_sparsity

from ..commands.conftest import ROOT, as_jsonl, environment, make_texts, make_tokenizer
from ..conftest import make_model
from ..forked import python

FOLDER = ROOT / "integrations" / "accelerate"


@pytest.mark.parametrize(("name", "processes"), [("cpu", 2), ("one_machine", 8), ("two_machines", 16)])
def test_accelerate_reads_the_configurations(name: str, processes: int) -> None:
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))  # refuses unknown keys
    assert config.num_processes == processes
    assert config.num_machines == (2 if name == "two_machines" else 1)


def test_a_model_under_fsdp2_is_pruned_and_saved(tmp_path: Path) -> None:
    model, data, target = tmp_path / "model", tmp_path / "texts.jsonl", tmp_path / "pruned"
    make_model().save_pretrained(model)
    make_tokenizer().save_pretrained(model)
    data.write_text(as_jsonl(make_texts()))
    start = [python(), "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["--model", model, "--dataset", data, "--output", target, "--sequence-length", "16", "--cpu"]
    done = subprocess.run(
        [*start, str(FOLDER / "prune_fsdp2.py"), *map(str, words)],
        env=environment(PYTHON_EXEC=python()),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    verification = verify_sparsity(target)
    assert verification.ok
    assert '"LlamaForCausalLM"' in (target / "config.json").read_text(encoding="utf-8")
