"""The page on extending, word by word."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from optimum_mwanda import sparsity_record, verify_sparsity
from tests.commands.conftest import environment, run_process
from tests.conftest import EXAMPLES
from tests.forked import python

PAGE = (EXAMPLES.parent / "docs" / "extending.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the examples and the module that the page begins with."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(EXAMPLES)
    (tmp_path / "my_pruning.py").write_text(blocks("python")[0])
    return tmp_path


def test_the_module_is_used_as_the_page_says(place: Path) -> None:
    _, script = blocks("python")
    (place / "use.py").write_text(script)
    variables = environment(HF_DATASETS_CACHE=str(place / "cache"))
    done = subprocess.run([python(), "use.py"], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "loudest\n"


def test_the_command_line_reaches_what_a_plugin_registers(place: Path) -> None:
    (line,) = blocks("bash")
    start, command, *words = shlex.split(line.replace("\\\n", " "))
    assert (start, command) == ("optimum-cli", "mwanda")
    cache = str(place / "cache")
    run = run_process("mwanda", *words, interpreter=python(), HF_DATASETS_CACHE=cache)
    assert run.code == 0, run.err
    record = sparsity_record("loudest")
    assert record is not None
    assert (record.settings["criterion"], record.settings["allocation"]) == ("loudest", "energy")
    assert len(set(record.to_dict()["blocks"]["sparsity"])) > 1
    assert verify_sparsity("loudest").ok
    run = run_process("mwanda", "card", "loudest", interpreter=python())
    assert run.code != 0
    assert "register it first with register_criterion (on the command line: --plugin)" in run.err
    run = run_process("mwanda", "card", "loudest", "--plugin", "my_pruning", interpreter=python())
    assert run.code == 0
