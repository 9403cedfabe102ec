"""Files and folders that appear once they are complete, or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Gives a folder to fill beside `path`, and moves it to `path` when the block has succeeded.

    If anything ends the block early, even an interrupt, nothing is left of the new folder, and the old one stays.

    Args:
        path: Where the folder will appear.
        overwrite: Whether to replace a folder at `path` that is not empty.

    Raises:
        FileExistsError: If there is a folder at `path` that is not empty.
        OSError: If there is something else that cannot be replaced, or the folder cannot be created.
    """
    target = Path(path).resolve()
    _check_target(target, path, overwrite)
    made = [parent for parent in target.parents if not parent.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # A sibling is on the same file system. The folder is inside it, because others cannot read what mkdtemp makes.
        scratch = tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
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


@contextlib.contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Gives a path to write to beside `target`, and moves the file to `target` when the block has succeeded."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    try:
        yield partial
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Writes the whole file or nothing."""
    with whole_file(target) as partial:
        partial.write_text(text, encoding="utf-8")


def _check_target(target: Path, path: str | os.PathLike[str], overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{path} is a file: name a folder.")
    if os.path.ismount(target):
        raise OSError(f"{path} is a mount point, which cannot be replaced: name a folder inside it.")
    if target.is_dir() and any(target.iterdir()):
        if not overwrite:
            raise FileExistsError(f"{path} exists and is not empty: name another folder.")
        for place in (Path.cwd(), Path.home()):
            if target == place or target in place.parents:
                raise OSError(f"{path} holds {place}, and overwriting would delete it: name another folder.")


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
