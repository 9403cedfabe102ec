"""The parser of a subcommand, with usage errors on one line and without abbreviated flags."""

import argparse
import difflib
from collections.abc import Sequence
from typing import Any, NoReturn

from .errors import UsageError, one_line


class OneLineParser(argparse.ArgumentParser):
    """An argparse parser with one-line errors and without abbreviations, which a new flag could make ambiguous."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Refuses unknown arguments here, where the known flags can be suggested."""
        found, unknown = super().parse_known_args(args, namespace)
        for argument in unknown:
            flag = argument.partition("=")[0]
            near = difflib.get_close_matches(flag, self._option_string_actions, n=1, cutoff=0.6)
            hint = f" Did you mean {near[0]}?" if near and flag.startswith("-") else ""
            self.error(f"{argument!r} is not known.{hint}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Ends the process with one line on standard error."""
        self.exit(UsageError.exit_code, f"{self.prog}: error: {one_line(message)} See {self.prog} --help.\n")


def with_default(help: str, default: Any) -> str:
    """A help text that names the default; percent signs, which argparse would format, are escaped."""
    return f"{help} (default: {default})".replace("%", "%%")
