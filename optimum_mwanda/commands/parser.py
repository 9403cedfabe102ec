"""The parser of a subcommand, with usage errors on one line and without abbreviated flags."""

import argparse
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from .errors import UsageError, one_line


class _HelpFormatter(argparse.HelpFormatter):
    """Ends the lines of an example so that it can be pasted into a shell; argparse would break it within flags."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if not text.startswith("Example: "):
            return super()._fill_text(text, width, indent)
        return " \\\n    ".join(textwrap.wrap(text, width - 6, break_on_hyphens=False, break_long_words=False))


class OneLineParser(argparse.ArgumentParser):
    """An argparse parser with one-line errors and without abbreviations, which a new flag could make ambiguous."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, "formatter_class": _HelpFormatter, **kwargs})

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Refuses unknown arguments here, where the known flags can be suggested."""
        found, unknown = super().parse_known_args(args, namespace)
        for argument in unknown:
            self.error(f"{argument!r} is not known.{self._hint(argument.partition('=')[0])}")
        return found, unknown

    def _hint(self, flag: str) -> str:
        """What may have been meant; nothing rather than something else."""
        if not flag.startswith("--"):
            return ""
        for action in self._actions:
            if not action.option_strings and flag in (f"--{action.dest}", f"--{str(action.metavar).lower()}"):
                return f" {action.metavar} is given without a flag."
        import difflib  # only for a mistake: every other call of the command line does without

        flags = list(self._option_string_actions)
        near = difflib.get_close_matches(flag, flags, n=1, cutoff=0.8)
        short = sorted((each for each in flags if len(flag) > 5 and _abbreviates(flag, each)), key=len)
        return f" Did you mean {(near or short)[0]}?" if near or short else ""

    def format_help(self) -> str:
        """The help, whose first line names what must be given; the list below it has all flags."""
        if self.usage is None:
            required = [action for action in self._actions if action.option_strings and action.required]
            words = [
                *(f"[{a.metavar}]" if a.nargs == "?" else str(a.metavar) for a in self._get_positional_actions()),
                *(f"{action.option_strings[0]} {action.metavar}" for action in required),
                "[flags]",
            ]
            self.usage = " ".join([self.prog, *words]).replace("%", "%%")
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Ends the process with one line on standard error."""
        self.exit(UsageError.exit_code, f"{self.prog}: error: {one_line(message)} See {self.prog} --help.\n")


def _abbreviates(flag: str, other: str) -> bool:
    """Whether the letters of one stand in the other in the same order: `--seqlen` in `--sequence-length`."""
    letters = iter(other)
    return other.startswith(flag[:3]) and all(letter in letters for letter in flag)


def with_default(help: str, default: Any) -> str:
    """A help text that names the default; percent signs, which argparse would format, are escaped."""
    return f"{help} (default: {default})".replace("%", "%%")
