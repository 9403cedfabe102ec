"""`optimum-cli mwanda compress`."""

import argparse
from pathlib import Path

from .base import Result, Subcommand, add_common_options
from .checkpoint import refresh_card
from .errors import ModelError, errors_as
from .output import add_overwrite, new_folder


class CompressCommand(Subcommand):
    """Store a pruned checkpoint by its non-zeros; loading needs optimum-mwanda then.

    The weights are read one by one, and nothing is lost: `decompress` gives them back bit for bit.
    """

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declares the flags."""
        parser.description = CompressCommand.__doc__
        parser.add_argument("input", metavar="IN", help="Folder of an ordinary checkpoint")
        parser.add_argument("output", metavar="OUT", help="Folder to write to")
        add_overwrite(parser)
        add_common_options(parser)

    def execute(self) -> Result:
        """Compresses."""
        args = self.args
        before = folder_bytes(args.input)  # OUT may replace IN
        with new_folder(args.output, args.overwrite) as folder, errors_as(ModelError):
            from ..checkpoint.compressed import compress

            compress(args.input, folder)
            refresh_card(folder, self.warn)
        return size_result(args.input, before, args.output)


def size_result(source: str, before: int, target: str) -> Result:
    """Says what was written and how large it is; `before` is the size that `source` had, in bytes."""
    after = folder_bytes(target)
    text = f"Wrote {target}: {after:,} bytes, {after / max(before, 1):.1%} of {source}."
    return Result(text, {"output": target, "bytes": after, "input_bytes": before})


def folder_bytes(path: str) -> int:
    """Size of all files in a folder."""
    return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
