"""Exit codes, interrupts, and folders that appear as a whole or not at all."""

import argparse
import errno
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from safetensors import SafetensorError

import optimum_mwanda.sharing.folder
from optimum_mwanda import MWandaPruner
from optimum_mwanda.commands.base import Result, Subcommand, _termination_as_exit
from optimum_mwanda.commands.errors import UsageError
from optimum_mwanda.commands.models import pruning_errors
from optimum_mwanda.commands.output import new_folder
from optimum_mwanda.version import __version__
from optimum_mwanda.walking.editor import PartiallyPrunedError

from ..forked import python
from ..hub_server import TOKEN, HubServer
from .conftest import SMALL, Pruned, Run, as_jsonl, command, environment, make_texts, run_process

Cli = Callable[..., Run]
MAGNITUDE = ("--criterion", "magnitude", "--allocation", "uniform", "--quiet")


@pytest.fixture
def broken_card(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Lets the last step of writing a checkpoint fail."""

    def install(error: BaseException) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(optimum_mwanda.sharing.folder, "write_card", fail)

    return install


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--sparsity", "half"], 2, "invalid float value"),
        (["--sparsity", "1.5"], 2, "give a share"),
        (["--criterion", "mwnda"], 2, "criterion='mwnda' is not known. Choose one of: 'magnitude', 'wanda'"),
        (["--group", "column"], 2, "invalid choice"),
        (["--plugin", "no_such_module"], 2, "--plugin no_such_module cannot be imported: No module named"),
        (["--dtyp", "auto"], 2, "Did you mean --dtype"),
        (["--seqlen", "8"], 2, "Did you mean --sequence-length"),
        (["--model", "x"], 2, "MODEL is given without a flag"),
        (["--output", "x"], 2, "OUT is given without a flag"),
        (["--frobnicate", "8"], 2, "'--frobnicate' is not known. See"),
        (["--dataset", "DATA", "--languages", "en,sw"], 3, "on the command line --languages en sw."),
        (["--dataset", "DATA", "--languages", "EN"], 3, "Did you mean 'en'?"),
        (["--device-map", "{cpu"], 2, "--device-map"),
        ([], 2, "needs calibration text"),
        (["--dataset", "no.jsonl"], 3, "no.jsonl"),
        (["--dataset", "DATA", "--languages", "xx"], 3, "'xx' was asked for"),
        (["--dataset", "DATA", "--text-column", "body"], 3, "'body' is missing"),
        (["--dataset", "DATA", "--sequence-length", "60", "--languages", "en"], 0, ""),
        (
            ["--dataset", "DATA", "--include", "*.no"],
            4,
            "*.no",
        ),
        (["--dataset", "DATA", "--eval-dataset", "DATA", "--report", "OUT"], 2, "OUT and --report both name"),
        (["--dataset", "DATA", "--pattern", "3:5"], 4, "does not divide"),
        (["--dataset", "DATA", "--tokenizer", "./none"], 4, "./none"),
    ],
)
def test_exit_codes_and_one_line(
    cli: Cli, model: Path, data: Path, tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    paths = {"DATA": data, "OUT": tmp_path / "out"}
    run = cli("prune", model, paths["OUT"], *(paths.get(word, word) for word in words), "--quiet")
    assert run.code == code, run.err
    if code:
        assert message in run.error
        assert run.error.startswith("optimum-cli mwanda prune: error: ")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [(), ("--json",)], ids=["text", "json"])
def test_reader_that_leaves_early_is_no_error(pruned: Pruned, words: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        process = subprocess.run(
            command("mwanda", "inspect", pruned.path, *words, interpreter=python()),
            stdout=writer,
            stderr=subprocess.PIPE,
            env=environment(),
        )
    finally:
        os.close(writer)
    assert (process.returncode, process.stderr) == (0, b"")


def test_missing_model_is_a_model_error(cli: Cli, tmp_path: Path) -> None:
    run = cli("prune", tmp_path / "none", tmp_path / "out", *MAGNITUDE)
    assert run.code == 4
    assert list(tmp_path.iterdir()) == []


def test_internal_error_has_one_line_and_a_traceback_on_demand(
    cli: Cli, model: Path, tmp_path: Path, broken_card: Callable[[BaseException], None]
) -> None:
    broken_card(KeyError("a bug"))
    run = cli("prune", model, tmp_path / "out", *MAGNITUDE)
    assert run.code == 1
    assert "KeyError" in run.error
    assert list(tmp_path.iterdir()) == []
    run = cli("prune", model, tmp_path / "out", *MAGNITUDE, "--debug")
    assert run.code == 1
    assert "Traceback" in run.err


def test_real_process_ends_with_the_code(model: Path, tmp_path: Path) -> None:
    run = run_process("mwanda", "prune", model, tmp_path / "out", "--dataset", tmp_path / "no.jsonl")
    assert run.code == 3
    assert "no.jsonl" in run.error
    assert list(tmp_path.iterdir()) == []


def test_interrupt_while_weights_are_changed_is_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt), pruning_errors():
        raise PartiallyPrunedError("some are pruned") from KeyboardInterrupt()


def test_remote_code_is_not_run_unasked(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "remote"
    folder.mkdir()
    auto_map = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": auto_map}))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w')")
    run = cli("prune", folder, tmp_path / "out", *MAGNITUDE)
    assert run.code == 4
    assert not (tmp_path / "was-run").exists()


class TestOutput:
    def test_folder_that_holds_something_is_refused(self, cli: Cli, model: Path, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("mine")
        run = cli("prune", model, tmp_path, *MAGNITUDE)
        assert run.code == 2
        assert "--overwrite" in run.error
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

    def test_overwrite_replaces_the_old_folder(self, cli: Cli, model: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (out / "old.txt").write_text("old")
        assert cli("prune", model, out, *MAGNITUDE, "--overwrite").code == 0
        assert (out / "config.json").is_file()
        assert not (out / "old.txt").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_failed_overwrite_keeps_the_old_folder(
        self, cli: Cli, model: Path, tmp_path: Path, broken_card: Callable[[BaseException], None]
    ) -> None:
        broken_card(OSError("disk full"))
        out = tmp_path / "out"
        out.mkdir()
        (out / "old.txt").write_text("old")
        run = cli("prune", model, out, *MAGNITUDE, "--overwrite")
        assert run.code == 4
        assert "disk full" in run.error
        assert [path.name for path in out.iterdir()] == ["old.txt"]
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_interrupt_while_saving_leaves_nothing(
        self, cli: Cli, model: Path, tmp_path: Path, broken_card: Callable[[BaseException], None]
    ) -> None:
        broken_card(KeyboardInterrupt())
        run = cli("prune", model, tmp_path / "deep" / "er" / "out", *MAGNITUDE)
        assert run.code == 130
        assert "interrupted" in run.error
        assert list(tmp_path.iterdir()) == []

    def test_result_is_kept_and_named_if_something_appears_in_its_place(
        self, cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "out"

        def write(*_: Any) -> None:
            out.mkdir()
            (out / "mine.txt").write_text("mine")

        monkeypatch.setattr(optimum_mwanda.sharing.folder, "write_card", write)
        run = cli("prune", model, out, *MAGNITUDE)
        kept = tmp_path / ".out.mwanda" / "complete"
        assert run.code == 2
        assert f"The result is complete in {kept}" in run.error
        assert (kept / "model.safetensors").is_file()
        assert [path.name for path in out.iterdir()] == ["mine.txt"]
        run = cli("prune", model, out, *MAGNITUDE, "--overwrite")
        assert (run.code, f"left its complete result in {kept}" in run.error) == (2, True)
        assert (kept / "model.safetensors").is_file()

    def test_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("x")
        with pytest.raises(UsageError, match="is a file"), new_folder(str(tmp_path / "out"), overwrite=True):
            pass


class Greeting(Subcommand):
    """A command whose result has characters that few consoles have."""

    VALUES: ClassVar[dict[str, Any]] = {"text": "× 日本語 é 😀"}

    def execute(self) -> Result:
        print("× 日本語", file=sys.stderr)
        return Result(self.VALUES["text"], self.VALUES)


@pytest.mark.parametrize("encoding", ["ascii", "cp1251", "utf-8"])
@pytest.mark.parametrize("as_json", [False, True])
def test_console_that_lacks_characters_shows_their_codes(
    encoding: str, as_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    parser = argparse.ArgumentParser()
    args = argparse.Namespace(json=as_json, quiet=False, debug=False)
    Greeting(None, args=args, parser=parser, from_defaults_factory=True).run()
    text = out.buffer.getvalue().decode(encoding)
    if as_json:
        assert json.loads(text) == Greeting.VALUES
    else:
        assert text == ("× 日本語 é 😀\n" if encoding == "utf-8" else "\\xd7 \\u65e5\\u672c\\u8a9e \\xe9 \\U0001f600\n")


class TestResources:
    def test_room_for_the_model_is_checked_before_it_is_pruned(
        self, cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        monkeypatch.setattr(MWandaPruner, "prune", None)
        run = cli("prune", model, tmp_path / "out", *MAGNITUDE)
        assert run.code == 4
        assert re.search(r"1,000 bytes free, but [\d,]{6,} are needed", run.error)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (OSError(errno.ENOSPC, "No space left on device"), "the disk is full: [Errno 28]"),
            (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk is full"),
            (OSError(errno.EFBIG, "File too large"), "a file of this size is not allowed here: [Errno 27]"),
            (SafetensorError("I/O error: File too large (os error 27)"), "raise the limit of your session"),
            (MemoryError("Unable to allocate 9.00 GiB"), "memory does not suffice: Unable to allocate 9.00 GiB"),
            (torch.cuda.OutOfMemoryError("Tried to allocate 2.00 GiB"), "Tried to allocate 2.00 GiB"),
            (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes"), "7 bytes"),
            (RuntimeError("unable to mmap 7 bytes: Cannot allocate memory (12)"), "memory does not suffice: unable to"),
        ],
        ids=lambda value: type(value).__name__,
    )
    @pytest.mark.parametrize("during", ["pruning", "saving"])
    def test_full_disk_and_memory_are_model_errors_that_say_what_was_needed(
        self,
        cli: Cli,
        model: Path,
        tmp_path: Path,
        error: Exception,
        message: str,
        during: str,
        broken_card: Callable[[BaseException], None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def fail(*_: Any) -> None:
            raise error

        if during == "saving":
            broken_card(error)
        else:
            monkeypatch.setattr(MWandaPruner, "prune", fail)
        run = cli("prune", model, tmp_path / "out", *MAGNITUDE)
        assert (run.code, list(tmp_path.iterdir())) == (4, [])
        assert message in run.error

    def test_weights_that_cannot_be_written_are_a_model_error(
        self, cli: Cli, model: Path, tmp_path: Path, broken_card: Callable[[BaseException], None]
    ) -> None:
        broken_card(SafetensorError("I/O error: Input/output error (os error 5)"))
        run = cli("prune", model, tmp_path / "out", *MAGNITUDE)
        assert (run.code, "(os error 5)" in run.error) == (4, True)

    @pytest.mark.parametrize(
        "words",
        [("calibrate", "m", "OUT/s"), ("evaluate", "m", "--output", "OUT/r"), ("compare", "m", "--results", "OUT/r")],
    )
    def test_read_only_place_is_found_before_the_work(
        self, cli: Cli, tmp_path: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "access", lambda *_: False)
        run = cli(*(word.replace("OUT", str(tmp_path)) for word in words), "--dataset", "no.jsonl")
        assert (run.code, f"{tmp_path} is read-only" in run.error) == (2, True), run.err

    def test_plots_without_matplotlib_are_refused_before_the_runs(
        self, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
        run = cli("compare", "m", "--results", tmp_path / "r", "--dataset", "d", "--plots", tmp_path / "plots")
        assert (run.code, "--plots needs matplotlib" in run.error) == (2, True)


class TestInputs:
    def test_output_never_replaces_what_is_read(
        self, cli: Cli, model: Path, data: Path, statistics: Path, tmp_path: Path
    ) -> None:
        source = Path(shutil.copytree(model, tmp_path / "models" / "source"))
        text, sums = (Path(shutil.copy(path, tmp_path)) for path in (data, statistics))
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        words = ("--dataset", text, *SMALL, "--overwrite")
        for run, message in (
            (cli("prune", source, source, *words), f"OUT is or holds {source}, which MODEL names"),
            (cli("prune", source, source.parent, *words), "which MODEL names"),
            (cli("prune", source, tmp_path / "out", *words, "--eval-dataset", text, "--report", text), "--dataset"),
            (cli("apply", source, sums, tmp_path, "--overwrite"), "OUT is or holds"),
            (cli("calibrate", source, text, *words), "STATS is or holds"),
            (cli("calibrate", source, source / "model.safetensors", *words), "is a part of the checkpoint"),
            (cli("search", source, source, *words, "--eval-dataset", text), "which MODEL names"),
            (cli("evaluate", source, *words[:2], "--output", text, "--overwrite"), "which --dataset names"),
            (cli("compress", source, source.parent, "--overwrite"), "which would be replaced"),
        ):
            assert run.code == 2, run.err
            assert message in run.error
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    def test_current_folder_is_refused_though_it_is_empty(
        self, cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for words in ((), ("--overwrite",)):
            run = cli("prune", model, ".", *MAGNITUDE, *words)
            assert (run.code, "must not be replaced" in run.error) == (2, True)
        assert Path.cwd().is_dir()


def restore_signals() -> None:
    """A test run in the background, or under nohup, ignores signals, and so would its children."""
    for each in (signal.SIGINT, signal.SIGHUP):
        signal.signal(each, signal.SIG_DFL)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this platform has no SIGHUP")
@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_signal_while_calibrating_leaves_nothing(model: Path, tmp_path: Path, sent: str, code: int) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text(as_jsonl(make_texts(2000)))
    out = tmp_path / "made" / "out"
    words = ("--dataset", texts, "--batch-size", "1", "--samples-per-language", "100000", "--sequence-length", "8")
    process = subprocess.Popen(
        command("mwanda", "prune", model, out, *words, interpreter=python()),
        env=environment(HF_DATASETS_CACHE=str(tmp_path / "cache")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=restore_signals,
    )
    assert process.stderr is not None
    seen = ""
    while not re.search(r"Calibrating.*[1-9]/", seen) and (part := process.stderr.read(20)):
        seen += part
    assert list(out.parent.iterdir()), "the new folder is filled beside its place"
    process.send_signal(getattr(signal, sent))
    rest = process.communicate()
    assert process.returncode == code, rest
    assert "Traceback" not in rest[1]
    assert rest[1].splitlines()[-1].endswith("interrupted" if sent == "SIGINT" else f"terminated by {sent}")
    assert not out.parent.exists()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this platform has no SIGHUP")
def test_ignored_hangup_stays_ignored_as_nohup_wants_it() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _termination_as_exit():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("place", ["texts/stats.safetensors", "texts/deeper/stats.safetensors"])
def test_target_inside_a_file_is_refused_before_the_work(cli: Cli, tmp_path: Path, place: str) -> None:
    (tmp_path / "texts").write_text("a file")
    run = cli("calibrate", tmp_path / "no-model", tmp_path / place, "--dataset", "no.jsonl")
    assert run.code == 2
    assert "is not a folder" in run.error


class TestPush:
    @pytest.mark.parametrize("more", [(), ("--stream",)], ids=str)
    def test_pushes_what_was_written(self, more: tuple[str, ...], model: Path, data: Path, tmp_path: Path) -> None:
        with HubServer() as hub:
            variables = {
                "HF_ENDPOINT": hub.url,
                "HF_HOME": str(tmp_path / "home"),
                "HF_TOKEN": TOKEN,
                "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_XET": "1",
                "NO_PROXY": "127.0.0.1",
                "no_proxy": "127.0.0.1",
            }
            words = ("--dataset", data, "--eval-dataset", data, "--push-to-hub", "me/pruned", "--private", "--json")
            words = ("prune", model, tmp_path / "out", *words, *SMALL, *more)
            run = run_process("mwanda", *words, interpreter=python(), **variables)
            assert run.code == 0, run.err
            assert "me/pruned" in run.json["pushed"]
            files = hub.repos["me/pruned"]["main"]
            assert {"tokenizer.json", "README.md", "evaluation.json"} <= set(files)
            assert any(name.endswith(".safetensors") for name in files)
            written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.suffix != ".md"}
            assert {name: content for name, content in files.items() if name in written} == written
            assert b"me/pruned" in files["README.md"]
            assert hub.private["me/pruned"]

    def test_without_a_token_nothing_starts(
        self, cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
        run = cli("prune", model, tmp_path / "out", *MAGNITUDE, "--push-to-hub", "me/pruned")
        assert run.code == 5
        assert "hf auth login" in run.error
        assert list(tmp_path.iterdir()) == []

    def test_failed_push_keeps_the_folder(
        self, cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("huggingface_hub.get_token", lambda: TOKEN)
        run = cli("prune", model, tmp_path / "out", *MAGNITUDE, "--push-to-hub", "me/pruned")  # tests are offline
        assert run.code == 5
        assert "is complete" in run.err
        assert (tmp_path / "out" / "config.json").is_file()


def test_version_is_told(cli: Cli) -> None:
    assert cli("--version").out.strip() == f"optimum-mwanda {__version__}"


@pytest.mark.parametrize(
    "command", ["apply", "card", "compare", "decompress", "evaluate", "prune", "recover", "search", "write"]
)
def test_help_begins_with_what_must_be_given_and_ends_with_an_example(cli: Cli, command: str) -> None:
    text = cli(command, "--help").out
    usage, *_, example = text.strip().split("\n\n")
    assert len(usage.splitlines()) <= 2
    assert usage.endswith("[flags]")
    assert example.startswith(f"Example: optimum-cli mwanda {command} ")
    pasted = example.replace(" \\\n", " ")
    assert len(pasted.splitlines()) == 1
    assert {word for word in pasted.split() if word.startswith("--")} <= set(
        re.findall(r"(?<=^  )--[\w-]+", text, re.M)
    )
