"""`optimum-cli` finds the command, pays nothing for it, and survives it."""

import importlib
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import optimum.commands.base
import pytest

from optimum_mwanda.commands import COMMANDS

from .conftest import ROOT, Run, environment, run_here, run_process

REGISTER = ROOT / "optimum" / "commands" / "register" / "register_mwanda.py"
PROBE = """
import json, sys
from optimum.commands.optimum_cli import main
sys.argv = ["optimum-cli", *sys.argv[1:]]
try:
    main()
finally:
    heavy = ("torch", "transformers", "datasets", "huggingface_hub", "numpy", "optimum_mwanda")
    print(json.dumps([name for name in heavy if name in sys.modules]), file=sys.stderr)
"""


def imported(*words: str) -> tuple[str, list[str]]:
    """What `optimum-cli` prints, and which of the heavy modules it has imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *words], env=environment(), capture_output=True, text=True, check=True
    )
    return done.stdout, json.loads(done.stderr)


def test_registration_imports_nothing() -> None:
    out, modules = imported("--help")
    assert "mwanda" in out
    assert modules == []


@pytest.mark.parametrize("name", ["plan", "prune", "calibrate", "apply", "search"])
def test_commands_with_settings_take_presets(name: str) -> None:
    assert "--preset {magnitude,wanda,ria,sparsegpt," in run_here(name, "--help").out


def test_help_of_a_subcommand_imports_nothing_heavy() -> None:
    out, modules = imported("mwanda", "prune", "--help")
    assert "--samples-per-language" in out
    assert modules == ["optimum_mwanda"]


def test_only_the_command_that_is_named_is_imported() -> None:
    probe = PROBE.replace(
        '"optimum_mwanda")', '"optimum_mwanda", *(f"optimum_mwanda.commands.{name}" for name in NAMES))'
    )
    names = [name for name in COMMANDS if name != "plan"] + ["dry_run"]
    done = subprocess.run(
        [sys.executable, "-c", f"NAMES = {names}\n{probe}", "mwanda", "--help"],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stderr) == ["optimum_mwanda"]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_says_of_a_command_what_its_class_says(name: str) -> None:
    module = importlib.import_module(f"optimum_mwanda.commands.{'dry_run' if name == 'plan' else name}")
    command = getattr(module, f"{name.capitalize()}Command")
    assert command.__doc__.partition("\n")[0] == COMMANDS[name]


def test_namespace_has_no_init_file() -> None:
    assert [path.name for path in (ROOT / "optimum").rglob("__init__.py")] == []


@pytest.mark.parametrize("words", [(), ("--help",)])
def test_help_names_every_subcommand(words: tuple[str, ...]) -> None:
    run = run_here(*words)
    assert run.code == 0
    assert all(name in run.out for name in COMMANDS)


@pytest.fixture
def broken(tmp_path: Path) -> str:
    """A path with the registration and a package that cannot be imported."""
    folder = tmp_path / "optimum" / "commands" / "register"
    folder.mkdir(parents=True)
    shutil.copy(REGISTER, folder)
    (tmp_path / "optimum_mwanda").mkdir()
    (tmp_path / "optimum_mwanda" / "__init__.py").write_text("raise RuntimeError('torn to shreds')")
    return str(tmp_path)


def test_broken_package_does_not_break_optimum_cli(broken: str) -> None:
    run = run_process("--help", PYTHONPATH=broken)
    assert (run.code, run.err) == (0, "")
    assert "export" in run.out
    run = run_process("mwanda", "prune", "in", "out", PYTHONPATH=broken)
    assert run.code == 1
    assert "torn to shreds" in run.error


def test_two_copies_on_the_import_path_do_not_break_optimum_cli(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "optimum", tmp_path / "optimum", ignore=shutil.ignore_patterns("__pycache__"))
    run = run_process("mwanda", "--help", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert (run.code, run.err) == (0, "")
    assert "calibrate" in run.out


def test_optimum_with_other_base_classes_is_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(optimum.commands.base, "CommandInfo")
    assert runpy.run_path(str(REGISTER))["REGISTER_COMMANDS"] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_has_help_with_its_default(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    run: Run = run_here(name, "--help")
    assert run.code == 0
    flags = ["--" + text for text in run.out.partition("options:")[2].split("\n  --")[1:]]
    assert len(flags) >= 3
    for line in flags:
        assert "(default: " in line or "(required)" in line, line
