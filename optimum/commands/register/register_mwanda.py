"""Tells `optimum-cli` that there is a command `mwanda`.

Every call of `optimum-cli` imports this module, whatever the command, and nothing catches its errors. So it imports
nothing of ours, and declares the subcommands only when the command line says `mwanda`.
"""

from typing import Any

try:
    from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

    class MWandaCommand(BaseOptimumCLICommand):
        """`optimum-cli mwanda`."""

        COMMAND = CommandInfo(name="mwanda", help="Prune multilingual language models (optimum-mwanda).")

        def __init__(self, subparsers: Any, *args: Any, **kwargs: Any) -> None:
            is_declared = kwargs.get("from_defaults_factory", False)
            # With two copies on the import path, a checkout and a wheel, optimum-cli registers the first one twice.
            if not is_declared and self.COMMAND.name in (getattr(subparsers, "choices", None) or ()):
                return
            super().__init__(subparsers, *args, **kwargs)
            if not is_declared:
                self.parser.parse_known_args = self._parse_known_args

        def _parse_known_args(self, words: Any = None, *args: Any, **kwargs: Any) -> Any:
            """Declares the subcommands that are named and parses as before."""
            del self.parser.parse_known_args
            try:
                from optimum_mwanda.commands import declare

                declare(self, words)
            except Exception as error:
                self.parser.exit(1, f"optimum-cli mwanda: optimum-mwanda cannot be imported: {error!r}\n")
            return self.parser.parse_known_args(words, *args, **kwargs)

    REGISTER_COMMANDS = [MWandaCommand]
except Exception:  # an optimum-cli that this was not written for must still work, without this command
    REGISTER_COMMANDS = []
