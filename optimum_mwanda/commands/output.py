"""Output folders that appear when they are complete, or not at all."""

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from .errors import UsageError


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that `new_folder` and `check_file` ask for."""
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="Replace what lies at the output path, when the new output is complete (default: refuse)",
    )


@contextlib.contextmanager
def new_folder(path: str, overwrite: bool) -> Iterator[Path]:
    """Gives a folder to fill beside `path`, which takes its place when the block has succeeded.

    Whatever ends the block early, an interrupt included, nothing is left of the new folder, and the old one stays.

    Args:
        path: Where the folder is to appear.
        overwrite: Whether something may be there.

    Raises:
        UsageError: If something is there that may not be replaced, or the folder cannot be made.
    """
    target = Path(path).resolve()
    _check_target(target, path, overwrite)
    made = [parent for parent in target.parents if not parent.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # A sibling, to be on the same file system. A folder inside it, as mkdtemp makes one that others cannot read.
        scratch = tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error}") from error
    try:
        with scratch as name:
            folder = Path(name, "new")
            folder.mkdir()
            yield folder
            _replace(target, folder, Path(name, "old"))
    except BaseException:
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def check_file(path: str, overwrite: bool) -> Path:
    """Checks where a file is to be written, before the work that gives its content.

    Raises:
        UsageError: If it exists and may not be replaced, is a folder, or would lie in something that is none.
    """
    target = Path(path)
    if target.is_dir():
        raise UsageError(f"{path} is a folder: name a file.")
    if target.exists() and not overwrite:
        raise UsageError(f"{path} exists: name another file, or give --overwrite.")
    nearest = next((parent for parent in target.absolute().parents if parent.exists()), None)
    if nearest is not None and not nearest.is_dir():
        raise UsageError(f"{path} cannot be written: {nearest} is no folder.")
    return target


def check_distinct(paths: Mapping[str, str | None]) -> None:
    """Checks that no two arguments name the same file, of which only what is written last would be left.

    Args:
        paths: Argument, as the user knows it, to what was given.

    Raises:
        UsageError: If two do.
    """
    known: dict[Path, str] = {}
    for name, path in paths.items():
        if path is not None and (first := known.setdefault(Path(path).resolve(), name)) != name:
            raise UsageError(f"{first} and {name} both name {path}: give each a path of its own.")


def write_text(target: Path, text: str) -> None:
    """Writes a file as a whole or not at all."""
    with whole_file(target) as partial:
        partial.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Gives a path to write to beside `target`, which takes its place when the block has succeeded."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    try:
        yield partial
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _check_target(target: Path, path: str, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise UsageError(f"{path} is a file: name a folder.")
    if os.path.ismount(target):
        raise UsageError(f"{path} is a mount point, which cannot be replaced: name a folder inside it.")
    if target.is_dir() and any(target.iterdir()):
        if not overwrite:
            raise UsageError(f"{path} exists and is not empty: name another folder, or give --overwrite.")
        for place in (Path.cwd(), Path.home()):
            if target == place or target in place.parents:
                raise UsageError(f"{path} holds {place}, and --overwrite would delete it: name another folder.")


def _replace(target: Path, new: Path, old: Path) -> None:
    if not target.exists():
        new.rename(target)
        return
    target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        old.rename(target)
        raise
