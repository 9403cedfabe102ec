"""`optimum-cli mwanda compress`."""

import argparse
from pathlib import Path

from .base import Result, Subcommand, add_common_options
from .errors import ModelError, UsageError, errors_as
from .output import add_overwrite, new_folder
from .saving import refresh_card


class CompressCommand(Subcommand):
    """Store only the non-zeros of a pruned checkpoint; loading it then needs optimum-mwanda.

    The weights are read one by one and nothing is lost: `decompress` restores them bit for bit.
    """

    INPUT = "an ordinary checkpoint"
    EXAMPLE = "compress PRUNED OUT"

    @classmethod
    def parse_args(cls, parser: argparse.ArgumentParser) -> None:
        """Declares the flags."""
        parser.description = cls.__doc__
        parser.epilog = f"Example: optimum-cli mwanda {cls.EXAMPLE}"
        parser.add_argument("input", metavar="IN", help=f"Folder of {cls.INPUT}")
        parser.add_argument("output", metavar="OUT", help="Folder to write to")
        add_overwrite(parser)
        add_common_options(parser)

    def execute(self) -> Result:
        """Converts and says how large the result is."""
        args = self.args
        if Path(args.output).resolve() in Path(args.input).resolve().parents:
            raise UsageError(f"{args.output} holds {args.input}, which would be replaced: name another folder.")
        before = _bytes(args.input)  # OUT may replace IN
        with new_folder(args.output, args.overwrite) as folder, errors_as(ModelError):
            self.convert(args.input, folder)
            refresh_card(folder, self.warn)
        after = _bytes(args.output)
        text = f"Wrote {args.output}: {after:,} bytes, {after / max(before, 1):.1%} of {args.input}."
        return Result(text, {"output": args.output, "bytes": after, "input_bytes": before})

    def convert(self, source: str, folder: Path) -> None:
        """Fills the new folder."""
        from ..storage.compressed import compress

        compress(source, folder)


def _bytes(path: str) -> int:
    """Size of all files in a folder."""
    return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
