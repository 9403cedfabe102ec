"""`optimum-cli mwanda write`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..configuration import MWandaConfig
from ..storage.outputs import whole_file
from ..utils import abridged
from ..values import SELF_WRITTEN
from .base import Result, Subcommand, add_common_options
from .errors import DataError, ModelError, UsageError, errors_as
from .models import add_model_options, load_model, load_tokenizer
from .output import add_overwrite, check_file, check_paths
from .places import open_dataset
from .text_files import FORMATS

if TYPE_CHECKING:
    from datasets import Dataset

_FORMATS = {ending: kind for ending, kind in FORMATS.items() if kind in ("json", "csv", "parquet") and ending != ".tsv"}


class WriteCommand(Subcommand):
    """Let the dense model write calibration text, for languages that it knows and that you have no text of.

    With a sentence in each such language (--beginnings), it goes on in that language. Without, all languages are mixed.
    Add the file to other calibration text: --dataset texts.jsonl self.jsonl. Of mixed text, say how many chunks to use
    and what they weigh: --samples-per-language self=180 --language-weights self=8.
    """

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declares the flags."""
        parser.description = WriteCommand.__doc__
        parser.epilog = "Example: optimum-cli mwanda write MODEL self.jsonl --chunks 180 --sequence-length 256"
        parser.add_argument("model", metavar="MODEL", help="Folder or repository of the dense model")
        parser.add_argument("output", metavar="OUT", help=f"File to write to; its name ends in {', '.join(_FORMATS)}")
        add_overwrite(parser)
        group = parser.add_argument_group("text")
        group.add_argument(
            "--beginnings",
            nargs="+",
            metavar="DATASET",
            help="Texts to go on with, in all of their languages: files, or the split train of a folder or repository "
            "(default: write from nothing, in all languages mixed)",
        )
        group.add_argument(
            "--chunks",
            type=int,
            metavar="N",
            help="How many chunks the text fills, with --beginnings in each language (default: 180, or 32 in each)",
        )
        group.add_argument(
            "--sequence-length",
            type=int,
            metavar="N",
            help="Tokens per chunk, as in the calibration (default: 512, or fewer if the model has fewer positions)",
        )
        group.add_argument(
            "--temperature",
            type=float,
            metavar="T",
            help="Above 1, what the model finds unlikely becomes more frequent, below 1 less (default: 1.0, with "
            "--beginnings 0.8)",
        )
        group.add_argument("--seed", type=int, metavar="N", default=0, help="Seed of the draw (default: 0)")
        group.add_argument(
            "--batch-size",
            type=int,
            metavar="N",
            default=MWandaConfig.batch_size,
            help=f"Most texts that are written at a time (default: {MWandaConfig.batch_size})",
        )
        for name, default, help in (
            (
                "--language",
                SELF_WRITTEN,
                "What stands for the language, or with --beginnings goes before it; cards explain self",
            ),
            ("--language-column", MWandaConfig.language_column, "Name of its column, in the beginnings too"),
            ("--text-column", MWandaConfig.text_column, "Name of the column with the text, in the beginnings too"),
        ):
            group.add_argument(name, metavar="NAME", default=default, help=f"{help} (default: {default})")
        add_model_options(parser, only_measured=True)
        add_common_options(parser)

    def execute(self) -> Result:
        """Writes one file."""
        args = self.args
        target = self._target()
        with errors_as(UsageError, ValueError):
            from ..calibration.beginnings import BeginningError, split_beginnings
            from ..calibration.self_written import check_request, resolve_request, write_calibration_text

            names = ("chunks", "sequence_length", "temperature", "seed", "batch_size")
            request = {name: getattr(args, name) for name in names}
            labels = {name: getattr(args, name) for name in ("language", "language_column", "text_column")}
            check_request(**request, **labels)
            chunks, temperature = resolve_request(args.chunks, args.temperature, args.beginnings)
            request |= {"chunks": chunks, "temperature": temperature}
        with open_dataset(args.beginnings, language_column=args.language_column) as beginnings:
            if beginnings is not None:
                with errors_as(DataError, TypeError, ValueError):
                    beginnings = split_beginnings(beginnings, args.language_column, args.text_column)
            model = load_model(args.model, args, args.revision)
            tokenizer = load_tokenizer(args.model, args)
            with (
                errors_as(ModelError, ValueError, FloatingPointError),
                errors_as(DataError, TypeError, BeginningError),
            ):
                dataset = write_calibration_text(
                    model, tokenizer, beginnings=beginnings, **request, **labels, progress=not args.quiet
                )
        with errors_as(DataError, OSError), whole_file(target) as partial:
            _save(dataset, partial)
        languages = dataset.unique(args.language_column)
        values = {"output": args.output, "texts": len(dataset), "languages": languages, **request, **labels}
        text = f"Wrote {args.output}: {len(dataset)} texts, which fill {request['chunks']} chunks."
        if args.beginnings is not None:
            text = f"{text[:-1]} in each language: {abridged(languages)}."
        return Result(text, values | {"beginnings": args.beginnings})

    def _target(self) -> Path:
        """The path to write to.

        Raises:
            UsageError: If nothing can be written there.
        """
        args = self.args
        check_paths(args, {"OUT": args.output})
        target = check_file(args.output, args.overwrite)
        if target.suffix not in _FORMATS:
            raise UsageError(f"{args.output} has no known format: its name must end in {', '.join(_FORMATS)}.")
        return target


def _save(dataset: "Dataset", path: Path) -> None:
    kind = _FORMATS[path.suffix]
    if kind == "json":
        dataset.to_json(path, force_ascii=False)
    elif kind == "csv":
        dataset.to_csv(path)
    else:
        dataset.to_parquet(path)
