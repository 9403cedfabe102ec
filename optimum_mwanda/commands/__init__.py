"""The subcommands of `optimum-cli mwanda`, one per module; `docs/cli.md` shows them.

Declaring them imports neither torch nor transformers: what is heavy is imported when a command runs. The modules of
commands that the command line does not name are not imported at all.
"""

import importlib
from collections.abc import Sequence
from typing import Any

from ..version import __version__

COMMANDS = {
    "plan": "Say what pruning a model would take: what is pruned, memory, disk, passes over the text, and time.",
    "prune": "Calibrate on a multilingual dataset, prune, and write the model with its card.",
    "write": "Let the dense model write calibration text, for languages that it knows and that you have no text of.",
    "allocate": "Decide how sparse every block becomes, or search for the best sparsity of every matrix, and write the "
    "plan.",
    "calibrate": "Run calibration text through the dense model and keep the statistics for `apply`.",
    "apply": "Prune with the statistics of `calibrate`, at one or several sparsities.",
    "recover": "Train a pruned model for a while, with its zeros kept and its languages in balance.",
    "search": "Find the highest sparsity at which no language degrades too much, and prune there.",
    "evaluate": "Measure perplexity and bits per byte in every language, also against the dense model.",
    "compare": "Prune with many settings from one calibration, and compare them in every language.",
    "inspect": "Show the sparsity record of a model, its zeros layer by layer, and whether the two agree.",
    "card": "Write the model card (README.md) of a pruned model, or update our section of it.",
    "compress": "Store only the non-zeros of a pruned checkpoint; loading it then needs optimum-mwanda.",
    "decompress": "Turn a compressed checkpoint into an ordinary one that every tool can read.",
}
"""Name to what the help says about it: the first line of the docstring of its class."""

_MODULES = {"plan": "dry_run"}  # the others are called after their command


def declare(parent: Any, words: Sequence[str] | None = None) -> None:
    """Declares every subcommand.

    Args:
        parent: The command `mwanda`, an instance of optimum's `BaseOptimumCLICommand`.
        words: The command line after `mwanda`: of commands that are not named in it, nothing is declared but the name
            and the help. None: all are declared in full.
    """
    from optimum.commands.base import CommandInfo

    from .parser import OneLineParser

    parent.parser.add_argument("--version", action="version", version=f"optimum-mwanda {__version__}")
    parent.subparsers = parent.parser.add_subparsers(metavar="COMMAND", parser_class=OneLineParser)
    for name, help in COMMANDS.items():
        if words is None or name in words:
            module = importlib.import_module(f"{__name__}.{_MODULES.get(name, name)}")
            command = getattr(module, f"{name.capitalize()}Command")
            parent.register_subcommand(CommandInfo(name=name, help=help, subcommand_class=command))
        else:
            parent.subparsers.add_parser(name, help=help)
