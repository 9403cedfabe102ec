"""`optimum-cli mwanda decompress`."""

import argparse

from .base import Result, Subcommand, add_common_options
from .checkpoint import refresh_card
from .compress import folder_bytes, size_result
from .errors import ModelError, errors_as
from .output import add_overwrite, new_folder


class DecompressCommand(Subcommand):
    """Turn a compressed checkpoint into an ordinary one, which every tool can read."""

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declares the flags."""
        parser.description = DecompressCommand.__doc__
        parser.add_argument("input", metavar="IN", help="Folder of a compressed checkpoint")
        parser.add_argument("output", metavar="OUT", help="Folder to write to")
        add_overwrite(parser)
        add_common_options(parser)

    def execute(self) -> Result:
        """Decompresses."""
        args = self.args
        before = folder_bytes(args.input)  # OUT may replace IN
        with new_folder(args.output, args.overwrite) as folder, errors_as(ModelError):
            from ..checkpoint.compressed import decompress

            decompress(args.input, folder)
            refresh_card(folder, self.warn)
        return size_result(args.input, before, args.output)
