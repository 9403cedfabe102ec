"""Commands that several processes run together."""

import json
import socket
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from optimum_mwanda.commands.models import default_device_map

from ..forked import python
from ..processes.test_pruning import NEAR_TIES
from .conftest import ROOT, SMALL, Run, environment, run_here

CONFIG = ROOT / "integrations" / "accelerate" / "cpu.yaml"
LAUNCHERS = {
    "accelerate": ("accelerate.commands.launch", "--config_file", str(CONFIG), "--main_process_port", "{port}"),
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
}


def launch(launcher: str, *words: str | Path, **variables: str) -> Run:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    start = [word.format(port=port) for word in LAUNCHERS[launcher]]
    module = "--module" if launcher == "accelerate" else "-m"
    command = [python(), "-m", *start, module, "optimum.commands.optimum_cli", "mwanda", *map(str, words)]
    done = subprocess.run(
        command,
        env=environment(PYTHON_EXEC=python(), **variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return Run(done.returncode, done.stdout, done.stderr)


def test_two_processes_write_what_one_writes(model: Path, data: Path, tmp_path: Path) -> None:
    words = ("--dataset", data, "--eval-dataset", data, "--reconstruction", "obs", "--json", *SMALL)
    run = launch("accelerate", "prune", model, tmp_path / "two", *words)
    assert run.code == 0, run.err
    found = json.loads(run.out)  # once, and nothing else
    assert run_here("prune", model, tmp_path / "one", *words).code == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        assert torch.equal(tensor == 0, two[name] == 0), name
        torch.testing.assert_close(tensor, two[name], atol=1e-4, rtol=1e-3)
    assert list(found["coverage"]) == ["en", "fr", "sw"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_two_processes_stream_what_one_streams(model: Path, data: Path, tmp_path: Path) -> None:
    words = ("--dataset", data, "--calibration", "sequential", "--stream", "--json", *SMALL)
    run = launch("torchrun", "prune", model, tmp_path / "two", *words)
    assert run.code == 0, run.err
    assert json.loads(run.out)["output"] == str(tmp_path / "two")
    assert run_here("prune", model, tmp_path / "one", *words).code == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert sum(int(((tensor == 0) != (two[name] == 0)).sum()) for name, tensor in one.items()) <= NEAR_TIES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_an_error_of_the_second_process_is_said_once(model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(
        "import os\n"
        "from optimum_mwanda import MWandaPruner\n"
        "def fail(*_):\n"
        "    raise ValueError('these rows cannot be read')\n"
        "if os.environ['RANK'] == '1':\n"
        "    MWandaPruner._open = fail\n"
    )
    words = ("--dataset", data, "--plugin", "failing", *SMALL)
    target = tmp_path / "statistics.safetensors"
    run = launch("torchrun", "calibrate", model, target, *words, PYTHONPATH=f"{ROOT}:{tmp_path}")
    assert run.code != 0
    assert run.err.count("error: these rows cannot be read") == 1
    assert "exitcode: 3" in run.err.replace(" : ", ": ")
    assert run.out == ""
    assert not target.exists()


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert default_device_map() == "auto"
    for name, value in {"RANK": "11", "WORLD_SIZE": "16", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    assert default_device_map() == "cuda:3"


def test_other_commands_work_in_one_process(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    run = run_here("inspect", model)
    assert run.code == 2
    assert "this command works in one process, and here are 2" in run.error
