"""What can go wrong with a command, and what the shell is told."""

import contextlib
import re
from collections.abc import Iterator
from typing import ClassVar

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
