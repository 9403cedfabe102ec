"""A tiny model with a tokenizer and some text on disk, and the command itself, in this process or in one of its own."""

import contextlib
import dataclasses
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from optimum.commands.optimum_cli import main
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from ..conftest import make_model

ROOT = Path(__file__).parents[2]
SMALL = ("--sequence-length", "16", "--samples-per-language", "3", "--quiet")


@dataclasses.dataclass
class Run:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line on standard error."""
        (line,) = self.err.splitlines()
        return line


def environment(**variables: str) -> dict[str, str]:
    """The environment of a process that finds this checkout, installed or not."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}


def command(*words: str | Path, interpreter: str | None = None) -> list[str]:
    """The real console script where there is one, by itself or read by an interpreter."""
    script = Path(sys.executable).with_name("optimum-cli")
    if script.is_file():
        start = [str(script)] if interpreter is None else [interpreter, str(script)]
    else:
        start = [interpreter or sys.executable, "-m", "optimum.commands.optimum_cli"]
    return [*start, *map(str, words)]


def run_process(*words: str | Path, interpreter: str | None = None, **variables: str) -> Run:
    done = subprocess.run(
        command(*words, interpreter=interpreter),
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
    )
    return Run(done.returncode, done.stdout, done.stderr)


def run_here(*words: str | Path) -> Run:
    """`optimum-cli mwanda …` in this process."""
    out, err, before, code = io.StringIO(), io.StringIO(), sys.argv, 0
    sys.argv = ["optimum-cli", "mwanda", *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = before
    return Run(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="session")
def cli() -> Callable[..., Run]:
    return run_here


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({"<unk>": 0, "</s>": 1, **{f"w{i}": i for i in range(2, 96)}}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")


def make_texts(lines: int = 4) -> dict[str, list[str]]:
    """Lines of 20 words, from other words in each language."""
    choose = random.Random(0).randint
    return {
        language: [" ".join(f"w{choose(2 + 10 * index, 60 + 10 * index)}" for _ in range(20)) for _ in range(lines)]
        for index, language in enumerate(("en", "fr", "sw"))
    }


def as_jsonl(texts: dict[str, list[str]]) -> str:
    rows = ({"language": language, "text": text} for language, lines in texts.items() for text in lines)
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    make_model().save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "texts.jsonl"
    path.write_text(as_jsonl(make_texts()))
    return path


@dataclasses.dataclass
class Pruned:
    """The result of one `prune` that many tests look at."""

    path: Path
    run: Run


@pytest.fixture(scope="session")
def pruned(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Pruned:
    path = tmp_path_factory.mktemp("pruned") / "made" / "on-the-way"
    return Pruned(path, run_here("prune", model, path, "--dataset", data, "--eval-dataset", data, *SMALL))


@pytest.fixture(scope="session")
def statistics(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("statistics") / "tiny.safetensors"
    assert run_here("calibrate", model, path, "--dataset", data, *SMALL).code == 0
    return path
