"""Files and folders appear as a whole or not at all."""

import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from optimum_mwanda.storage import outputs, scratch
from optimum_mwanda.storage.outputs import CommitError, new_folder, whole_file, write_text


def test_empty_folder_and_link_are_filled(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with new_folder(tmp_path / "link") as folder:
        (folder / "a").write_text("a")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a").is_file()


@pytest.mark.parametrize("overwrite", [False, True])
def test_failure_leaves_what_was_there(tmp_path: Path, overwrite: bool) -> None:
    if overwrite:
        write_text(tmp_path / "deep" / "out" / "old", "old")
    before = sorted(tmp_path.rglob("*"))

    def fill() -> None:
        with new_folder(tmp_path / "deep" / "out", overwrite) as folder:
            (folder / "new").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill()
    assert sorted(tmp_path.rglob("*")) == before


def test_folder_that_holds_something_is_replaced_only_when_asked(tmp_path: Path) -> None:
    write_text(tmp_path / "out" / "old", "old")
    with pytest.raises(FileExistsError, match="not empty"), new_folder(tmp_path / "out"):
        pass
    with new_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "new").write_text("new")
        assert (tmp_path / "out" / "old").is_file()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_folders_that_must_not_be_deleted_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for path in ("..", tmp_path, "."):  # the last is empty, but a shell is in it
        with pytest.raises(OSError, match="must not be replaced"), new_folder(path, overwrite=True):
            pass


def test_file_in_the_place_or_in_the_path_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(NotADirectoryError, match="is a file"), new_folder(tmp_path / "out", overwrite=True):
        pass
    with pytest.raises(OSError, match="cannot be written"), new_folder(tmp_path / "out" / "deeper"):
        pass


def test_file_is_replaced_only_by_one_that_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "made" / "file"
    write_text(target, "old")

    def fail() -> None:
        with whole_file(target) as partial:
            partial.write_text("half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_text() == "old"
    write_text(target, "new")
    assert target.read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["file"]


OLD_FILES = {"config.json": "old", "deeper/weights": "old"}
NEW_FILES = {"config.json": "new", "weights": "new"}


def files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def fill(folder: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def replace(out: Path) -> None:
    """What all tests below look at: a folder replaces another one."""
    with new_folder(out, overwrite=True) as folder:
        fill(folder, NEW_FILES)


def at_every_line(work: Callable[[], None], act: Callable[[], None]) -> None:
    """Does the work, and acts before every line of the modules that write outputs."""
    modules = (outputs.__file__, scratch.__file__)

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in modules:
            return None
        if event == "line":
            act()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)


@pytest.fixture(params=["renamed", "moved"])
def start(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The parent of an old output, on an ordinary file system and on one that cannot rename the old folder."""
    folder = tmp_path / "start"
    fill(folder / "out", OLD_FILES)
    if request.param == "moved":
        rename = Path.rename

        def rename_what_is_new(path: Path, target: Path) -> Path:
            if path.is_dir() and (path.name in ("out", "deeper") or path.name == "old"):
                raise OSError(errno.EXDEV, "Invalid cross-device link")
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", rename_what_is_new)
    return folder


@pytest.fixture
def handlers() -> Iterator[None]:
    """The signals raise exceptions, as in the command line, wherever the tests run."""

    def leave(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    chosen = {"SIGINT": signal.default_int_handler, "SIGTERM": leave, "SIGHUP": leave}
    before = {name: signal.signal(signal.Signals[name], handler) for name, handler in chosen.items()}
    yield
    for name, handler in before.items():
        signal.signal(signal.Signals[name], handler)


def count_lines(start: Path, tmp_path: Path) -> int:
    lines: list[None] = []
    shutil.copytree(start, tmp_path / "counted")
    at_every_line(lambda: replace(tmp_path / "counted" / "out"), lambda: lines.append(None))
    assert files(tmp_path / "counted") == {f"out/{name}": text for name, text in NEW_FILES.items()}
    return len(lines)


def test_signal_at_any_line_loses_neither_the_old_nor_the_complete_new_folder(
    start: Path, tmp_path: Path, handlers: None
) -> None:
    left_behind = []
    for number in range(count_lines(start, tmp_path)):
        here = tmp_path / f"stopped-{number}"
        shutil.copytree(start, here)
        sent, left = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)[number % 3], [number]

        def stop(sent: signal.Signals = sent, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == -1:
                signal.raise_signal(sent)

        with pytest.raises((KeyboardInterrupt, SystemExit)):
            at_every_line(lambda here=here: replace(here / "out"), stop)
        if [path.name for path in here.iterdir()] != ["out"]:
            left_behind.append(number)
        check_nothing_is_lost(here)
    # Only between the end of the block and the moment from which signals wait.
    assert len(left_behind) <= 1


def test_kill_at_any_line_loses_neither_the_old_nor_the_complete_new_folder(start: Path, tmp_path: Path) -> None:
    here, copies = tmp_path / "killed", []
    shutil.copytree(start, here)

    def remember() -> None:
        copies.append(tmp_path / f"killed-{len(copies)}")
        shutil.copytree(here, copies[-1])

    at_every_line(lambda: replace(here / "out"), remember)
    for copy in copies:
        check_nothing_is_lost(copy)


def check_nothing_is_lost(here: Path) -> None:
    """The old folder or the new one is in its place, or both are kept whole for somebody to decide."""
    found = files(here / "out") if (here / "out").exists() else {}
    kept = {part: files(here / ".out.mwanda" / part) for part in ("complete", "old")}
    whole = found in (OLD_FILES, NEW_FILES)
    assert whole or (kept["complete"] == NEW_FILES and {**kept["old"], **found} == OLD_FILES), (found, kept)
    if kept["complete"] and not scratch.is_free(here / "out"):
        assert whole or "config.json" not in found, "a part of a folder must not look like a model"
        with pytest.raises(OSError, match="complete result"):
            replace(here / "out")
        return
    replace(here / "out")  # the next run works, and leaves nothing behind
    assert files(here) == {f"out/{name}": text for name, text in NEW_FILES.items()}
    assert [path.name for path in here.iterdir()] == ["out"]


def test_next_run_puts_a_complete_result_in_its_free_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path / ".out.mwanda" / "complete", NEW_FILES)
    fill(tmp_path / ".out.mwanda" / "old", OLD_FILES)
    with pytest.raises(FileExistsError, match="not empty"), new_folder(tmp_path / "out"):
        pass
    assert files(tmp_path) == {f"out/{name}": text for name, text in NEW_FILES.items()}
    assert "holds the result of an earlier run" in caplog.text


def test_next_run_names_and_removes_what_a_killed_one_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path / ".out.mwanda" / "new", {"weights": "x" * 1234})
    replace(tmp_path / "out")
    assert ".out.mwanda is left of a run that was stopped: 1,234 bytes are deleted." in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_runs_with_one_output_do_not_meet(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as folder:
        with pytest.raises(OSError, match="another process is writing it"), new_folder(tmp_path / "out"):
            pass
        with pytest.raises(OSError, match="another process is writing it"), whole_file(tmp_path / "out"):
            pass
        fill(folder, NEW_FILES)
    assert files(tmp_path / "out") == NEW_FILES


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_appears_in_the_place_during_a_run_is_kept_and_so_is_the_result(tmp_path: Path, overwrite: bool) -> None:
    out = tmp_path / "out"
    if overwrite:
        fill(out, OLD_FILES)
    with pytest.raises(CommitError, match=r"complete in .*/complete, but"), new_folder(out, overwrite) as new:  # noqa: PT012
        fill(new, NEW_FILES)
        fill(out, {"mine": "mine"})
    assert files(out) == {**(OLD_FILES if overwrite else {}), "mine": "mine"}
    assert files(tmp_path / ".out.mwanda" / "complete") == NEW_FILES


def test_result_is_kept_if_its_last_step_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "out", OLD_FILES)

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(outputs, "put", fail)
    with pytest.raises(CommitError, match=r"complete in .*Input/output error"):
        replace(tmp_path / "out")
    assert files(tmp_path / "out") == OLD_FILES
    assert files(tmp_path / ".out.mwanda" / "complete") == NEW_FILES


def test_link_in_the_place_of_the_hidden_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / ".out.mwanda")
    with pytest.raises(OSError, match="is a link"):
        replace(tmp_path / "out")
