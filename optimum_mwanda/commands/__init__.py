"""The subcommands of `optimum-cli mwanda`, one per module; `docs/cli.md` shows them.

Declaring them imports neither torch nor transformers: what is heavy is imported when a command runs.
"""

from typing import Any

from ..version import __version__


def declare(parent: Any) -> None:
    """Declares every subcommand.

    Args:
        parent: The command `mwanda`, an instance of optimum's `BaseOptimumCLICommand`.
    """
    from optimum.commands.base import CommandInfo

    from .allocate import AllocateCommand
    from .apply import ApplyCommand
    from .calibrate import CalibrateCommand
    from .card import CardCommand
    from .compare import CompareCommand
    from .compress import CompressCommand
    from .decompress import DecompressCommand
    from .dry_run import PlanCommand
    from .evaluate import EvaluateCommand
    from .inspect import InspectCommand
    from .parser import OneLineParser
    from .prune import PruneCommand
    from .recover import RecoverCommand
    from .search import SearchCommand
    from .write import WriteCommand

    parent.parser.add_argument("--version", action="version", version=f"optimum-mwanda {__version__}")
    parent.subparsers = parent.parser.add_subparsers(metavar="COMMAND", parser_class=OneLineParser)
    for name, command in {
        "plan": PlanCommand,
        "prune": PruneCommand,
        "write": WriteCommand,
        "allocate": AllocateCommand,
        "calibrate": CalibrateCommand,
        "apply": ApplyCommand,
        "recover": RecoverCommand,
        "search": SearchCommand,
        "evaluate": EvaluateCommand,
        "compare": CompareCommand,
        "inspect": InspectCommand,
        "card": CardCommand,
        "compress": CompressCommand,
        "decompress": DecompressCommand,
    }.items():
        help = (command.__doc__ or "").partition("\n")[0]
        parent.register_subcommand(CommandInfo(name=name, help=help, subcommand_class=command))
