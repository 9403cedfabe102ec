"""`optimum-cli mwanda search`."""

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..experiments.search.defaults import BOUNDS, MAX_DEGRADATION, RESOLUTION
from ..storage.outputs import write_text
from .base import Result, Subcommand, add_common_options
from .dataset import add_dataset_options, add_held_out_options, check_calibration_text, open_held_out, open_text
from .errors import DataError, UsageError, errors_as
from .models import (
    add_model_options,
    check_measurable,
    check_prunable,
    load_model,
    load_tokenizer,
    pruning_errors,
)
from .output import add_overwrite, add_restart, check_file, check_paths, new_folder, open_journal
from .saving import add_storage_options, check_model_room, summary, write_checkpoint
from .setting_flags import add_settings, read_settings

if TYPE_CHECKING:
    from ..experiments.search.outcome import SparsitySearch
    from ..experiments.search.space import SearchSpace
    from ..record.schema import SparsityRecord
    from ..storage.journal import Journal


class _NothingFound(Exception):
    """Ends the block that would write the model."""


class SearchCommand(Subcommand):
    """Find the highest sparsity at which no language degrades too much, and prune there.

    Sparsities are bisected with one calibration, and each trial is evaluated in every language of --eval-dataset. With
    OUT, the model is pruned at the sparsity that was found and written with its card. If even the lowest sparsity is
    too much, no model is written and the exit code is 4.
    """

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declares the flags."""
        parser.description = SearchCommand.__doc__
        parser.epilog = (
            "Example: optimum-cli mwanda search MODEL OUT --dataset texts.jsonl "
            "--eval-dataset held_out.jsonl --max-degradation 0.05"
        )
        parser.add_argument("model", metavar="MODEL", help="Folder or repository of the dense model")
        parser.add_argument(
            "output", metavar="OUT", nargs="?", help="Folder to write the pruned model to (default: write no model)"
        )
        parser.add_argument(
            "--trials",
            metavar="FILE",
            help="File to write all trials to: .md for Markdown, else JSON (default: none)",
        )
        add_storage_options(parser)
        add_overwrite(parser)
        add_restart(parser, "forget the trials of a search with OUT that was stopped")
        _add_limits(parser)
        add_dataset_options(parser, required=False, purpose="Calibration text, not needed for magnitude pruning")
        group = add_held_out_options(parser, required=True)
        group.add_argument(
            "--eval-languages", nargs="+", metavar="NAME", help="Languages that must not degrade (default: all)"
        )
        add_model_options(parser)
        add_settings(parser, leave_out=("sparsity", "pattern"))
        add_common_options(parser)

    def execute(self) -> Result:
        """Searches and writes what is asked for."""
        args = self.args
        target = None if args.trials is None else check_file(args.trials, args.overwrite)
        check_paths(args, {"OUT": args.output, "--trials": args.trials})
        search, record = self._search_and_write(self._space())
        parts = [search.to_markdown()]
        if record is not None:
            parts += [summary(record), f"Wrote {args.output}."]
        if target is not None:
            with errors_as(DataError, OSError):
                write_text(target, search.to_markdown() + "\n" if target.suffix == ".md" else search.to_json())
            parts.append(f"Wrote {target}.")
        values = {"output": None if record is None else args.output, **search.to_dict()}
        return Result("\n\n".join(parts), values, None if search.chosen is not None else search.verdict)

    def _space(self) -> "SearchSpace":
        """The limits; checks them before anything is loaded."""
        from ..experiments.search.space import SearchSpace

        args, config = self.args, read_settings(self.args)
        check_calibration_text(args.dataset, config)
        with errors_as(UsageError, ValueError):
            return SearchSpace(
                config, args.max_degradation, args.bounds, args.resolution, args.strengths, dict(args.protect or ())
            )

    def _search_and_write(self, space: "SearchSpace") -> "tuple[SparsitySearch, SparsityRecord | None]":
        """The result, and the record of the model if one was written."""
        args, record = self.args, None
        with contextlib.suppress(_NothingFound), self._folder() as folder:
            journal = open_journal(args, folder)
            search, model, tokenizer = self._search(space, folder, journal)
            if folder is not None:
                if search.chosen is None:
                    if journal is not None:
                        journal.clear()
                    raise _NothingFound
                record = write_checkpoint(model, tokenizer, folder, args, search.outcome)
        return search, record

    def _folder(self) -> "contextlib.AbstractContextManager[Path | None]":
        args = self.args
        return (
            contextlib.nullcontext() if args.output is None else new_folder(args.output, args.overwrite, resumable=True)
        )

    def _search(
        self, space: "SearchSpace", folder: "Path | None", journal: "Journal | None"
    ) -> "tuple[SparsitySearch, Any, Any]":
        """The result, the model, which is pruned there if it will be written, and its tokenizer."""
        from ..experiments.search.bisection import find_sparsity

        args = self.args
        with (
            open_text(args, space.config) as dataset,
            open_held_out(args, space.config) as held_out,
        ):
            model = load_model(args.model, args, args.revision, warn=self.warn)
            tokenizer = load_tokenizer(args.model, args)
            check_prunable(model, space.config)
            check_measurable(model)
            if folder is not None:
                check_model_room(model, folder, args, space.bounds[1])
            with pruning_errors():
                search = find_sparsity(
                    model,
                    dataset,
                    held_out,
                    tokenizer,
                    space.config,
                    max_degradation=space.max_degradation,
                    bounds=space.bounds,
                    resolution=space.resolution,
                    strengths=space.strengths,
                    protect=space.protect,
                    apply=args.output is not None,
                    progress=not args.quiet,
                    journal=journal,
                    languages=args.eval_languages,
                    tokens_per_language=args.tokens_per_language,
                )
        return search, model, tokenizer


def _add_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("search")
    group.add_argument(
        "--max-degradation",
        type=float,
        metavar="SHARE",
        default=MAX_DEGRADATION,
        help="How much the bits per byte of any language may rise, as a share of the dense model's "
        f"(default: {MAX_DEGRADATION})",
    )
    group.add_argument(
        "--bounds",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        default=BOUNDS,
        help=f"Lowest and highest sparsity to try (default: {BOUNDS[0]} {BOUNDS[1]})",
    )
    group.add_argument(
        "--resolution",
        type=float,
        metavar="STEP",
        default=RESOLUTION,
        help=f"Step between sparsities (default: {RESOLUTION})",
    )
    group.add_argument(
        "--strengths",
        nargs="+",
        type=float,
        metavar="LAMBDA",
        help="Allocation strengths to try, each with its own bisection (default: --allocation-strength)",
    )
    group.add_argument(
        "--protect",
        nargs="+",
        type=_factor,
        metavar="NAME=FACTOR",
        help="Languages to weigh more in calibration, as sw=2; shows what this changes at the sparsity that was found "
        "(default: none)",
    )


def _factor(text: str) -> tuple[str, float]:
    language, sign, factor = text.rpartition("=")
    try:
        return language, float(factor if sign and language else "none")
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a language with a factor, such as sw=2") from None
