"""The user's own modules that register criteria and allocations, imported before a command reads its settings."""

import argparse
import importlib
import os
import sys
from collections.abc import Iterable

from .errors import UsageError, one_line


def add_plugins(parser: argparse.ArgumentParser) -> None:
    """Adds `--plugin`."""
    parser.add_argument(
        "--plugin",
        dest="plugins",
        action="append",
        metavar="MODULE",
        help="Python module that registers criteria or allocations, installed or in the working directory; may be "
        "given several times (default: none)",
    )


def import_plugins(names: Iterable[str]) -> None:
    """Imports modules by name; installed modules come before those in the working directory.

    Raises:
        UsageError: If one cannot be imported.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            raise UsageError(
                f"--plugin {name} cannot be imported: {one_line(error)} Give the name, without .py, of a module that "
                "is installed or in the working directory."
            ) from error
