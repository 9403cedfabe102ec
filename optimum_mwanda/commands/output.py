"""Where a command may write."""

import argparse
import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..storage import outputs
from ..storage.scratch import PROGRESS
from .errors import ModelError, UsageError, errors_as
from .launched import is_first

if TYPE_CHECKING:
    from ..storage.journal import Journal


def add_overwrite(parser: argparse._ActionsContainer) -> None:
    """Adds the flag that `new_folder` and `check_file` ask for."""
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="Replace what is at the output path once the new output is complete (default: refuse)",
    )


def add_restart(parser: argparse._ActionsContainer, effect: str) -> None:
    """Adds the flag that `open_journal` asks for."""
    parser.add_argument("--restart", action="store_true", help=f"Begin anew and {effect} (default: go on with it)")


def open_journal(args: argparse.Namespace, folder: Path | None) -> "Journal | None":
    """What a run that was stopped has left beside its output; None without an output."""
    if folder is None:
        return None
    from ..storage.journal import Journal

    journal = Journal(folder.with_name(PROGRESS))
    if args.restart and is_first():
        journal.clear()
    return journal


def progress_bytes(output: str) -> int:
    """What a run that was stopped has finished beside an output."""
    target = Path(output).resolve()
    parts = target.with_name(f".{target.name}.mwanda").joinpath(PROGRESS).glob("*.safetensors")
    return sum(path.stat().st_size for path in parts)


@contextlib.contextmanager
def new_folder(path: str, overwrite: bool, resumable: bool = False) -> Iterator[Path]:
    """Gives a folder to fill, as `storage.outputs.new_folder` does, or says how to get one.

    Raises:
        UsageError: If the folder exists and must not be replaced, cannot be created, or is complete but cannot be moved
            into its place, where it is kept then.
    """
    if not is_first():
        yield Path(path)  # it leaves the work to the first before anything is written
        return
    with errors_as(UsageError, outputs.CommitError), contextlib.ExitStack() as stack:
        check_folder(path, overwrite)
        with errors_as(UsageError, OSError):
            folder = stack.enter_context(outputs.new_folder(path, overwrite, resumable))
        yield folder


def check_file(path: str, overwrite: bool) -> Path:
    """Checks that a file can be written, before the work that produces its content.

    Raises:
        UsageError: If it exists and must not be replaced, is a folder, or its parent is not a folder.
    """
    target = Path(path)
    if not is_first():
        return target
    if target.is_dir():
        raise UsageError(f"{path} is a folder: name a file.")
    if target.exists() and not overwrite:
        raise UsageError(f"{path} exists: name another file, or give --overwrite.")
    nearest = next((parent for parent in target.absolute().parents if parent.exists()), None)
    if nearest is not None and not nearest.is_dir():
        raise UsageError(f"{path} cannot be written: {nearest} is not a folder.")
    check_writable(target)
    return target


def check_writable(path: str | os.PathLike[str]) -> None:
    """Checks that something can be made or replaced at a path; a file system may be read-only.

    Raises:
        UsageError: If it cannot.
    """
    if not is_first():
        return
    parents = Path(path).absolute().parents
    nearest = next(parent for parent in parents if parent.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"{path} cannot be written: {nearest} is read-only for you. Name another path.")


def check_room(folder: Path, needed: int) -> None:
    """Checks before the work that there is room for its result.

    Args:
        folder: Where it will be written; it exists.
        needed: Bytes.

    Raises:
        ModelError: If there is not.
    """
    if not is_first():
        return
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ModelError(
            f"The disk of the output has {free:,} bytes free, but {needed:,} are needed: make room, or name a path on "
            "another disk."
        )


def check_folder(path: str, overwrite: bool) -> None:
    """Checks that a folder can be written, before the work that produces its content.

    Raises:
        UsageError: If it is not empty and must not be replaced, or cannot be replaced.
    """
    if not is_first():
        return
    with errors_as(UsageError, OSError):
        try:
            outputs.check_folder(path, overwrite)
        except FileExistsError as error:
            raise UsageError(f"{path} exists and is not empty: name another folder, or give --overwrite.") from error
    check_writable(Path(path).resolve())


def check_paths(args: argparse.Namespace, written: Mapping[str, str | None]) -> None:
    """Checks that no output replaces another one, or anything that the command reads.

    Args:
        args: All arguments.
        written: Argument, as the user knows it, to the path that will be written.

    Raises:
        UsageError: If two outputs are one file, or an output is or holds an input.
    """
    known: dict[Path, str] = {}
    for name, path in written.items():
        if path is not None and (first := known.setdefault(Path(path).resolve(), name)) != name:
            raise UsageError(f"{first} and {name} both name {path}: give each its own path.")
    for source, name in _READ.items():
        value = getattr(args, source, None) if name not in written else None
        for path in [value] if isinstance(value, str) else value or ():
            place = Path(path).resolve()
            for target, output in known.items():
                if place.exists() and (target == place or target in place.parents):
                    raise UsageError(
                        f"{output} is or holds {path}, which {name} names: name another path for {output}."
                    )
                if target.parent == place and _PART_OF_CHECKPOINT.fullmatch(target.name) and target.is_file():
                    raise UsageError(
                        f"{output} is a part of the checkpoint that {name} names: name another path for {output}."
                    )


_PART_OF_CHECKPOINT = re.compile(r"(pytorch_)?model.*\.(safetensors|bin)|(config|tokenizer.*)\.json")
_READ = {
    "model": "MODEL",
    "statistics": "STATS",
    "tokenizer": "--tokenizer",
    "dense": "--dense",
    "dense_report": "--dense-report",
    "dataset": "--dataset",
    "eval_dataset": "--eval-dataset",
    "beginnings": "--beginnings",
    "harness": "--harness",
    "config": "--config",
    "grid": "--grid",
    "plan": "--plan",
}
"""Arguments that name what a command reads."""
