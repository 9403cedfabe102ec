"""What can go wrong with a command, and what the shell gets to know of it."""

import contextlib
from collections.abc import Iterator
from typing import ClassVar

INTERNAL_ERROR = 1
INTERRUPTED = 130


class CommandError(Exception):
    """An error that the user can do something about: one line on standard error, and an exit code of its own."""

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
    """A push that failed after all the rest had succeeded."""

    exit_code = 5


@contextlib.contextmanager
def errors_as(kind: type[CommandError], *causes: type[Exception]) -> Iterator[None]:
    """Inside the block, errors of the given types, by default all, are reported as errors of one kind."""
    expected = causes or (Exception,)
    try:
        yield
    except CommandError:
        raise
    except expected as error:
        raise kind(one_line(error)) from error


def one_line(error: object) -> str:
    """A message on one line; the type stands in for an empty one."""
    return " ".join(str(error).split()) or type(error).__name__
