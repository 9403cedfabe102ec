"""`plan` and `prune --dry-run` say what pruning would take, and what would go wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from .conftest import SMALL, Run

Cli = Callable[..., Run]


def test_plan_says_what_pruning_takes(cli: Cli, model: Path) -> None:
    run = cli("plan", model, "--languages", "en", "sw", *SMALL)
    assert run.code == 0, run.err
    assert "LlamaForCausalLM with" in run.out
    assert "1 for statistics of the dense model, over 96 tokens in 2 languages" in run.out
    assert "| streamed " in run.out


def test_dry_run_takes_the_flags_of_prune_and_writes_nothing(cli: Cli, model: Path, data: Path, tmp_path: Path) -> None:
    words = ("prune", model, tmp_path / "out", "--dataset", data, *SMALL, "--sparsity", "0.6", "--stream")
    run = cli(*words, "--dry-run", "--json")
    assert run.code == 0, run.err
    assert (run.json["sparsity"], run.json["languages"], run.json["tokens"]) == (0.6, 3, 3 * 3 * 16)
    assert run.json["stream"]["memory"] > 0
    assert run.json["memory"]["seconds"] is not None
    assert list(tmp_path.iterdir()) == []
    planned = cli("plan", model, "--dataset", data, *SMALL, "--sparsity", "0.6", "--no-timing", "--json")
    timed = {"memory", "stream"}
    assert {k: v for k, v in planned.json.items() if k not in timed} == {
        k: v for k, v in run.json.items() if k not in timed
    }


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--pattern", "3:7"], 4, "does not divide the 32 inputs"),
        (["--include", "*.nothing"], 4, "matches none"),
        (["--sequence-length", "65"], 3, "exceeds the model's 64 positions"),
        (["--sparsity", "1.5"], 2, "give a share"),
        (["--activations", "nowhere"], 2, "activations='nowhere' is not allowed"),
        (["--language-column", "lang"], 3, "lang"),
    ],
)
def test_what_cannot_work_is_refused_as_prune_does(
    words: list[str], code: int, message: str, cli: Cli, model: Path, data: Path, tmp_path: Path
) -> None:
    start = ("prune", model, tmp_path / "out", "--dataset", data, "--quiet", *words)
    for end in (["--dry-run"], []):
        run = cli(*start, *end)
        assert run.code == code
        assert message in run.err
        assert list(tmp_path.iterdir()) == []


def test_paths_and_text_are_checked_first(cli: Cli, model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    assert cli("prune", model, tmp_path / "out", "--dataset", data, *SMALL, "--dry-run").code == 2
    assert cli("prune", model, tmp_path / "new", *SMALL, "--dry-run").code == 2
    missing = cli("plan", tmp_path / "nothing", *SMALL)
    assert missing.code == 4
    assert "nothing" in missing.error


def test_too_little_disk_or_memory_ends_as_a_model_error(
    cli: Cli, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("prune", model, tmp_path / "out", "--dataset", data, *SMALL, "--dry-run")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        run = cli(*words)
    assert run.code == 4
    assert "has 1,000 bytes free" in run.error
    assert "| in memory " in run.out
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**6))
    run = cli(*words)
    assert run.code == 4
    assert "the memory does not suffice" in run.error
    assert "give --stream" in run.error
    run = cli("plan", model, *SMALL, "--no-timing")
    assert run.code == 4
    assert "even streamed, the memory does not suffice" in run.error


def test_what_a_stopped_run_has_left_on_the_disk_is_not_needed_again(
    cli: Cli, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("prune", model, tmp_path / "out", "--dataset", data, *SMALL, "--dry-run", "--stream")
    needed = json.loads(cli(*words, "--json").out)["stream"]["disk"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1000))
    assert f"but {needed:,} are needed" in cli(*words).error
    progress = tmp_path / ".out.mwanda" / "progress"
    progress.mkdir(parents=True)
    (progress / "pruned-0-x.safetensors").write_bytes(bytes(1000))
    assert cli(*words).code == 0
    (progress / "pruned-0-x.safetensors").write_bytes(bytes(999))
    assert f"but {needed - 999:,} are needed" in cli(*words).error
