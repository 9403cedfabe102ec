"""The hidden folder beside an output in which it is made, and which one process owns at a time."""

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from ..modeling.interrupts import deferred_interrupts

logger = logging.getLogger(__name__)

COMPLETE = "complete"
"""Name that a new folder gets when it is complete. What has this name is never deleted."""
OLD = "old"
"""Name that a folder gets when it is about to be replaced."""
PROGRESS = "progress"
"""Folder for what a run that is stopped will need again."""
_LOCK = "lock"
_NAME = ".{}.mwanda"


@contextlib.contextmanager
def scratch_folder(target: Path, resumable: bool = False) -> Iterator[Path]:
    """Gives an empty hidden folder beside `target`, and deletes it in the end.

    What an earlier run left in it is looked after first: a complete result is moved to `target` if there is nothing,
    and anything else is deleted. Both are logged.

    Args:
        target: Where the output will be; its parent exists.
        resumable: Whether what is in the folder `PROGRESS` stays if the block fails, and is still there the next time.

    Raises:
        OSError: If the folder cannot be made, another process is using it, or it holds a complete result for which
            there is no room at `target`, or the progress of a run without `resumable`.
    """
    scratch = target.with_name(_NAME.format(target.name))
    lock = FileLock(scratch / _LOCK)
    with contextlib.ExitStack() as stack:
        stack.callback(lock.release)
        try:
            with deferred_interrupts():
                _take(scratch, lock)
            _look_after(scratch, target, resumable)
            yield scratch
        finally:
            with deferred_interrupts():
                if lock.is_locked:
                    _empty(scratch)
                    if not any((scratch / PROGRESS).glob("*.safetensors")):  # nothing was finished
                        _delete(scratch / PROGRESS)
                    # Whoever opens the lock from now on makes a new one, so it goes while it still keeps others out.
                    with contextlib.suppress(OSError):
                        (scratch / _LOCK).unlink()
                with contextlib.suppress(OSError):
                    scratch.rmdir()


def _take(scratch: Path, lock: FileLock) -> None:
    """Makes the folder and becomes its owner."""
    scratch.mkdir(exist_ok=True)
    if scratch.is_symlink():  # in a folder for everybody, somebody else can make one
        raise OSError(f"{scratch} is a link, which is not followed: delete it.")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OSError(f"another process is writing it now (in {scratch}): wait for it, or name another path.") from None


def progress_bytes(target: Path) -> int:
    """What a run that was stopped has left for the next one that makes `target`."""
    progress = target.with_name(_NAME.format(target.name)) / PROGRESS
    return sum(path.stat().st_size for path in progress.rglob("*") if path.is_file())


def is_free(target: Path) -> bool:
    """Whether there is nothing at a path, or an empty folder."""
    return not target.is_symlink() and (not target.exists() or (target.is_dir() and not any(target.iterdir())))


def put(folder: Path, target: Path) -> None:
    """Renames a folder to a path that is free."""
    if target.exists():
        target.rmdir()  # not every system replaces an empty folder
    folder.rename(target)


def _look_after(scratch: Path, target: Path, resumable: bool) -> None:
    """Deals with what is left of a run that was killed, or whose last step failed."""
    complete, old, progress = scratch / COMPLETE, scratch / OLD, scratch / PROGRESS
    if progress.exists() and not resumable:
        raise OSError(
            f"an interrupted run left its progress in {progress}: repeat the command that was stopped, which goes on "
            f"with it, or delete {scratch} first."
        )
    if complete.exists():
        if not is_free(target):
            replaced = f" (and what it was to replace in {old})" if old.exists() else ""
            raise OSError(
                f"an earlier run left its complete result in {complete}{replaced}, because there was something else in "
                f"its place: move or delete {scratch} first."
            )
        put(complete, target)
        _delete(progress)
        logger.warning("%s holds the result of an earlier run now, which was stopped in its last step.", target)
    elif size := sum(p.lstat().st_size for p in scratch.rglob("*") if p.is_file() and progress not in p.parents):
        logger.warning("%s is left of a run that was stopped: %s bytes are deleted.", scratch, f"{size:,}")
    _empty(scratch)


def _empty(scratch: Path) -> None:
    """Deletes everything but the lock, progress, and a complete result and what that was to replace."""
    kept = {_LOCK, COMPLETE, PROGRESS, *((OLD,) if (scratch / COMPLETE).exists() else ())}
    for path in list(scratch.iterdir()):
        if path.name not in kept:
            _delete(path)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    if path.exists():
        logger.warning("%s cannot be deleted.", path)
