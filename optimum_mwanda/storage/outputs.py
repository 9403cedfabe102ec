"""Files and folders that appear once they are complete, or not at all.

A folder is filled in a hidden folder beside its place (`scratch`) and then, in this order, named `complete`, the old
one is moved aside, and `complete` is moved into its place. So wherever a process may be killed, there is a whole folder
in the place, or everything is in the hidden folder, where the next run finds it.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..modeling.interrupts import deferred_interrupts
from .scratch import COMPLETE, OLD, PROGRESS, is_free, put, scratch_folder


class CommitError(OSError):
    """A result that is complete but could not be moved into its place; the message says where it is."""


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str], overwrite: bool = False, resumable: bool = False) -> Iterator[Path]:
    """Gives a folder to fill beside `path`, and moves it to `path` when the block has succeeded.

    If anything ends the block early, even an interrupt, nothing is left of the new folder, and the old one stays.

    Args:
        path: Where the folder will appear.
        overwrite: Whether to replace a folder at `path` that is not empty.
        resumable: Whether the folder `progress` beside the new one stays if the block ends early.

    Raises:
        FileExistsError: If there is a folder at `path` that is not empty.
        CommitError: If the folder is complete but cannot be moved to `path`, perhaps because something has appeared
            there since. It is kept where it is.
        OSError: If there is something else that cannot be replaced, the folder cannot be created, or another process
            is creating it.
    """
    target = Path(path).resolve()
    check_folder(path, overwrite)
    with _scratch(target, path, resumable) as scratch:
        check_folder(path, overwrite)  # an earlier result may have been put there now
        before = _content(target)
        folder = scratch / "new"
        folder.mkdir()
        yield folder
        with deferred_interrupts():
            _commit(folder, target, before)


@contextlib.contextmanager
def whole_file(target: Path, resumable: bool = False) -> Iterator[Path]:
    """Gives a path to write to beside `target`, and moves the file to `target` when the block has succeeded.

    Args:
        target: Where the file will appear.
        resumable: Whether the folder `progress` beside the path stays if the block ends early.
    """
    target = Path(os.path.abspath(target))  # a link is replaced, not followed
    with _scratch(target, target, resumable) as scratch:
        partial = scratch / (f"new {target.name}" if target.name == PROGRESS else target.name)
        yield partial
        partial.replace(target)
        shutil.rmtree(scratch / PROGRESS, ignore_errors=True)  # nobody needs it any more


def write_text(target: Path, text: str) -> None:
    """Writes the whole file or nothing."""
    with whole_file(target) as partial:
        partial.write_text(text, encoding="utf-8")


def write_bytes(target: Path, data: bytes) -> None:
    """Writes the whole file or nothing."""
    with whole_file(target) as partial:
        partial.write_bytes(data)


def check_folder(path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Checks that `new_folder` may put a folder at a path.

    Raises:
        FileExistsError: If there is a folder that is not empty.
        OSError: If there is something else that cannot be replaced.
    """
    target = Path(path).resolve()
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{path} is a file: name a folder.")
    if os.path.ismount(target):
        raise OSError(f"{path} is a mount point, which cannot be replaced: name a folder inside it.")
    for place in (Path.cwd(), Path.home()):
        if target == place or target in place.parents:
            raise OSError(f"{path} is or holds {place}, which must not be replaced: name another folder.")
    if not overwrite and not is_free(target):
        raise FileExistsError(f"{path} exists and is not empty: name another folder.")


@contextlib.contextmanager
def _scratch(target: Path, path: str | os.PathLike[str], resumable: bool = False) -> Iterator[Path]:
    """The hidden folder of an output, with the folders that lead there; these go again if the block fails."""
    made = [parent for parent in target.parents if not parent.exists()]
    with contextlib.ExitStack() as stack:
        try:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                scratch = stack.enter_context(scratch_folder(target, resumable))
            except OSError as error:
                raise OSError(f"{path} cannot be written: {error}") from error
            with stack.pop_all():
                yield scratch
        except BaseException:
            for parent in made:
                with contextlib.suppress(OSError):
                    parent.rmdir()
            raise


def _content(folder: Path) -> Mapping[Path, tuple[int, int, int]]:
    """What is in a folder, to see whether it has changed."""
    found = {path: path.lstat() for path in sorted(folder.rglob("*"))}
    return {path: (entry.st_ino, entry.st_size, entry.st_mtime_ns) for path, entry in found.items()}


def _commit(folder: Path, target: Path, before: Mapping[Path, tuple[int, int, int]]) -> None:
    complete = folder.rename(folder.with_name(COMPLETE))
    shutil.rmtree(folder.with_name(PROGRESS), ignore_errors=True)  # nobody needs it any more
    old = folder.with_name(OLD)
    try:
        if _content(target) != before:
            raise FileExistsError(f"what is in {target} has changed since")
        if before:
            _move(target, old)
        put(complete, target)
    except BaseException as error:
        if not complete.exists():  # an interrupt that came after the last step
            raise
        if old.exists() and not target.exists():
            with contextlib.suppress(OSError):
                _move(old, target)
        if not isinstance(error, Exception):
            raise
        replaced = f", and what it was to replace in {old}" if old.exists() else ""
        raise CommitError(
            f"The result is complete in {complete}{replaced}, but it cannot be moved to {target}: {error}. Move it "
            f"where you want it, and then delete {complete.parent}."
        ) from error


def _move(source: Path, target: Path) -> None:
    """Renames a folder; where its file system cannot, as an overlay for what is in a lower layer, moves the content."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        try:
            _move_content(source, target)
        except BaseException:
            _move_content(target, source)
            raise


def _move_content(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    # Without its config, a folder of which a part is left cannot be taken for a model.
    for path in sorted(source.iterdir(), key=lambda path: (path.name != "config.json", path.name)):
        place = target / path.name
        if path.is_dir() and not path.is_symlink():
            _move_content(path, place)
        else:
            path.rename(place)
    source.rmdir()
