"""What can go wrong with a command, and what the shell is told."""

import contextlib
import errno
import re
from collections.abc import Iterator
from typing import ClassVar

from ..utils import causes

INTERNAL_ERROR = 1
INTERRUPTED = 130

_UNSEEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class CommandError(Exception):
    """An error that the user can do something about: one line on standard error, and its own exit code."""

    exit_code: ClassVar[int]


class UsageError(CommandError):
    """Arguments, settings or output paths that are not allowed."""

    exit_code = 2


class DataError(CommandError):
    """A dataset, a file of statistics or a report that cannot be read or does not fit."""

    exit_code = 3


class ModelError(CommandError):
    """A model that cannot be loaded, pruned, verified or saved."""

    exit_code = 4


class HubError(CommandError):
    """A push that failed after everything else had succeeded."""

    exit_code = 5


def exhausted(error: BaseException) -> str | None:
    """What was used up, if that is the reason for an error: disk, file size or memory; the first cause says it best."""
    found = [reason for link in causes(error) if (reason := _used_up(link)) is not None]
    return found[-1] if found else None


def _used_up(error: BaseException) -> str | None:
    """The same for one error alone. Every library says it in its own way."""
    text = str(error)
    code = error.errno if isinstance(error, OSError) else None
    if code in _DISK or _DISK_FULL.search(text):
        return f"the disk is full: {one_line(error)}. Make room, or write to another disk."
    if code == errno.EFBIG or _FILE_TOO_LARGE.search(text):
        return (
            f"a file of this size is not allowed here: {one_line(error)}. Write to another disk, or raise the limit of "
            "your session (`ulimit -f`)."
        )
    if isinstance(error, MemoryError) or _MEMORY_FULL.search(f"{type(error).__name__}: {text}"):
        return (
            f"the memory does not suffice: {one_line(error)}. Give a smaller --batch-size or --sequence-length, "
            "--dtype bfloat16, or a machine with more memory."
        )
    return None


_DISK = (errno.ENOSPC, errno.EDQUOT) if hasattr(errno, "EDQUOT") else (errno.ENOSPC,)
_DISK_FULL = re.compile(r"No space left on device|os error 28\b|Disk quota exceeded")
_FILE_TOO_LARGE = re.compile(r"File too large \(os error 27\)")
_MEMORY_FULL = re.compile(r"^OutOfMemoryError: |can(?:'t|not) allocate memory|out of memory", re.IGNORECASE)


@contextlib.contextmanager
def errors_as(kind: type[CommandError], *causes: type[Exception]) -> Iterator[None]:
    """Inside the block, errors of the given types (by default all) are reported as errors of one kind."""
    expected = causes or (Exception,)
    try:
        yield
    except CommandError:
        raise
    except expected as error:
        raise kind(one_line(error)) from error


def one_line(error: object) -> str:
    """A message on one line; if it is empty, the type of the error."""
    return visible(" ".join(str(error).split())) or type(error).__name__


def visible(text: str) -> str:
    """Escapes, as JSON does, the characters that could control a terminal or reorder a line."""
    return _UNSEEN.sub(lambda sign: f"\\u{ord(sign[0]):04x}", text)
