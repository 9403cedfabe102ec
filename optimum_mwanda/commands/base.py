"""What all subcommands share: common flags, one result on standard output, and exit codes."""

import abc
import argparse
import contextlib
import dataclasses
import importlib
import io
import json
import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any, ClassVar, NoReturn

from optimum.commands.base import BaseOptimumCLICommand

from .errors import INTERNAL_ERROR, INTERRUPTED, CommandError, ModelError, exhausted, one_line, visible
from .launched import Done, Launch, leave_to_first
from .plugins import add_plugins, import_plugins


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a command.

    Attributes:
        text: For people.
        values: The same as plain JSON values, for `--json`.
        failure: Why the command ends as a model error although there is a result; None if it succeeds.
    """

    text: str
    values: dict[str, Any]
    failure: str | None = None


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that every subcommand has."""
    add_plugins(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="Print one JSON object and nothing else (default: text)")
    group.add_argument("--quiet", action="store_true", help="Show no progress bars (default: shown, on stderr)")
    group.add_argument("--debug", action="store_true", help="Show the traceback of an error (default: one line)")


class Terminated(SystemExit):
    """A signal asks the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


class Subcommand(BaseOptimumCLICommand):  # type: ignore[misc]
    """One subcommand. Only its result goes to standard output; everything else goes to standard error."""

    args: argparse.Namespace
    parser: argparse.ArgumentParser
    is_shared: ClassVar[bool] = False
    """Whether several processes can run it together."""

    @abc.abstractmethod
    def execute(self) -> Result:
        """Does the work."""

    def run(self) -> None:
        """Does the work, prints the result, and ends the process if the exit code is not 0."""
        _write_any_character()
        self._launch = Launch(self.is_shared)
        try:
            with _termination_as_exit(), contextlib.redirect_stdout(sys.stderr), self._launch.joined():
                if self.args.quiet:
                    _silence()
                if plugins := getattr(self.args, "plugins", None):
                    import_plugins(plugins)
                result = self.execute()
                leave_to_first()
        except Done:
            # Threads of a backend that outlive the interpreter abort it, and launchers then end the first process too.
            sys.stderr.flush()
            os._exit(0)
        except KeyboardInterrupt:
            self._fail("interrupted", INTERRUPTED)
        except Terminated as end:
            self._fail(f"terminated by {end.signal.name}", 128 + end.signal)
        except Exception as error:
            if (reason := exhausted(error)) is not None:
                self._fail(reason, ModelError.exit_code)
            if isinstance(error, CommandError):
                self._fail(one_line(error), error.exit_code)
            self._fail(f"internal error: {type(error).__name__}: {one_line(error)} (--debug shows more)")
        _show(_as_json(result.values) if self.args.json else result.text)
        if result.failure is not None:
            self._fail(result.failure, ModelError.exit_code)

    def warn(self, message: str) -> None:
        """Reports on standard error a problem that does not stop the command."""
        print(f"{self.parser.prog}: warning: {one_line(message)}", file=sys.stderr)

    def _fail(self, message: str, code: int = INTERNAL_ERROR) -> NoReturn:
        if self.args.debug and sys.exc_info()[0] is not None:
            traceback.print_exc()
        self._launch.end(f"{self.parser.prog}: error: {message}\n")
        sys.exit(code)


def _write_any_character() -> None:
    """Lets a console that lacks a character show its code instead of ending the command after all the work."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _as_json(values: dict[str, Any]) -> str:
    # JSON has escapes of its own for what the console may lack.
    is_unicode = "utf" in (getattr(sys.stdout, "encoding", None) or "utf-8").lower()
    return json.dumps(_finite(values), indent=2, ensure_ascii=not is_unicode)


def _show(text: str) -> None:
    """Prints the result; it is not an error if nobody reads it to its end, as with `| head`."""
    try:
        print(visible(text))
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes again when it ends, and that must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _termination_as_exit() -> Iterator[None]:
    """Lets a job remove half-written output when a scheduler or a closed terminal ends it."""
    # Windows has no SIGHUP. Ignored signals stay ignored: this is how nohup lets a job outlive its terminal.
    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {each: signal.getsignal(each) for each in signals if signal.getsignal(each) not in (signal.SIG_IGN, None)}

    def leave(number: int, _: Any) -> None:
        for each in before:  # some senders send both, and the second must not disturb the cleanup
            signal.signal(each, signal.SIG_IGN)
        raise Terminated(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        for each in before:
            signal.signal(each, leave)
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _silence() -> None:
    libraries: Any = [importlib.import_module(name) for name in ("datasets", "huggingface_hub.utils")]
    for library in libraries:
        library.disable_progress_bars()
    transformers_logging: Any = importlib.import_module("transformers.utils.logging")
    transformers_logging.disable_progress_bar()


def _finite(value: Any) -> Any:
    """The same values, with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
