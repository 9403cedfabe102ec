"""Modules of one's own that register criteria and allocations, imported before a command reads its settings."""

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
        help="Python module to import first, installed or in the working directory, for the criteria and allocations "
        "that it registers; may be given again (default: none)",
    )


def import_plugins(names: Iterable[str]) -> None:
    """Imports modules by name; what is installed is found before what lies in the working directory.

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
                "is installed or lies in the working directory."
            ) from error
