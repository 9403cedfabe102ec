"""`optimum-cli mwanda compare`."""

import argparse
import contextlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.settings import CONFIDENCE, EvaluationSettings
from ..experiments.grid.methods import GRID_PRESETS, choose, read_methods
from ..experiments.grid.plan import ComparisonPlan
from ..storage.outputs import write_text
from .base import Result, Subcommand, add_common_options
from .dataset import add_dataset_options, add_held_out_options, open_held_out, open_text
from .errors import DataError, UsageError, errors_as
from .launched import leave_to_first
from .models import (
    add_model_options,
    check_measurable,
    check_prunable,
    load_model,
    load_tokenizer,
    pruning_errors,
)
from .output import add_overwrite, check_file, check_folder, check_paths, check_writable, new_folder

if TYPE_CHECKING:
    from ..experiments.grid.runs import Results


class CompareCommand(Subcommand):
    """Prune with many settings from one calibration, and compare them in every language.

    Every finished run adds a line to --results and is not run again, so an interrupted comparison goes on where it
    stopped. Tables, plots and report are made from that file alone.
    """

    is_shared = True

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declares the flags."""
        parser.description = CompareCommand.__doc__
        parser.epilog = (
            "Example: optimum-cli mwanda compare MODEL --results results.jsonl "
            "--dataset texts.jsonl --eval-dataset held_out.jsonl --tables tables.md"
        )
        parser.add_argument(
            "model", metavar="MODEL", nargs="?", help="Folder or repository of the dense model; not with --tables-only"
        )
        parser.add_argument(
            "--results", metavar="FILE", required=True, help="JSON lines file of runs to read and extend (required)"
        )
        _add_grid(parser)
        add_dataset_options(parser, required=False, purpose="Calibration text")
        _add_evaluation(parser)
        _add_output(parser)
        add_model_options(parser)
        add_common_options(parser)

    def execute(self) -> Result:
        """Runs what is missing and shows everything."""
        from ..experiments.grid.summary import make_sections

        args = self.args
        path = Path(args.results)
        if not 0 < args.confidence < 1:
            raise UsageError(f"--confidence {args.confidence}: give a number between 0 and 1.")
        self._check_output()
        results = self._read(path) if args.tables_only else self._run(path, self._plan())
        leave_to_first()
        for name in (*(args.show or ()), *([] if args.baseline is None else [args.baseline])):
            if name not in results.names:
                raise UsageError(f"There is no method {name!r} in {path}. The file holds: {', '.join(results.names)}.")
        sections = make_sections(results, args.confidence)
        if not sections:
            raise DataError(f"{path} holds no finished run: run the comparison without --tables-only.")
        return self._show(sections, results)

    def _check_output(self) -> None:
        """Checks at once for errors that would otherwise appear after all runs."""
        args = self.args
        named = {"--tables": args.tables, "--plots": args.plots, "--report": args.report}
        check_paths(args, {"--results": args.results, **named})
        for path in (args.tables, args.report):
            if path is not None:
                check_file(path, args.overwrite)
        if args.plots is not None:
            if importlib.util.find_spec("matplotlib") is None:
                raise UsageError("--plots needs matplotlib: pip install 'optimum-mwanda[plots]'.")
            check_folder(args.plots, args.overwrite)
        if not args.tables_only:
            check_writable(args.results)

    def _plan(self) -> ComparisonPlan:
        """What to run; checks it before anything is loaded."""
        args = self.args
        if args.model is None or args.dataset is None or (args.eval_dataset is None) is not args.tune:
            raise UsageError("Give MODEL, --dataset, and either --eval-dataset or --tune; or give --tables-only.")
        with errors_as(UsageError, OSError, ValueError):
            preset = GRID_PRESETS[args.grid_preset]
            methods = preset.methods if args.grid is None else read_methods(Path(args.grid))
            has_points = args.sparsities is not None or args.patterns is not None
            return ComparisonPlan(
                methods=methods if args.methods is None else choose(methods, args.methods),
                sparsities=args.sparsities or (() if has_points else preset.sparsities),
                patterns=args.patterns or (() if has_points else preset.patterns),
                seeds=args.seeds,
                languages=args.languages,
                rotate=args.rotate,
                only=args.only or (),
                samples_per_language=args.samples_per_language,
                sequence_length=args.sequence_length,
                tokens_per_language=args.tokens_per_language,
                settings=args.settings,
            )

    def _read(self, path: Path) -> "Results":
        from ..experiments.grid.runs import read_results

        with errors_as(DataError, OSError, ValueError):
            results = read_results(path)
        if results is None:
            raise DataError(f"{path} holds no results: run the comparison without --tables-only.")
        return results

    def _run(self, path: Path, plan: ComparisonPlan) -> "Results":
        from ..experiments.grid.runner import run_comparison

        args = self.args
        with self._texts(plan) as (dataset, held_out):
            model = load_model(args.model, args, args.revision, warn=self.warn)
            tokenizer = load_tokenizer(args.model, args)
            for config in {config.pattern: config for _, config in plan.grid()}.values():
                check_prunable(model, config)
            check_measurable(model)
            with errors_as(DataError, OSError), pruning_errors():
                return run_comparison(
                    model,
                    dataset,
                    held_out,
                    path,
                    plan,
                    tokenizer,
                    batch_size=args.batch_size,
                    progress=not args.quiet,
                )

    @contextlib.contextmanager
    def _texts(self, plan: ComparisonPlan) -> Iterator[tuple[Any, Any]]:
        """Text to calibrate on and text to evaluate on."""
        from ..experiments.grid.halves import halve_documents

        args, config = self.args, plan.calibration(plan.seeds[0])
        with open_text(args, config) as dataset:
            if args.tune:
                with errors_as(DataError, KeyError, TypeError, ValueError):
                    halves = halve_documents(dataset, config.language_column)
                yield halves
                return
            with open_held_out(args, config) as held_out:
                yield dataset, held_out

    def _show(self, sections: Any, results: "Results") -> Result:
        from ..experiments.grid.markdown import BASELINE, to_markdown
        from ..experiments.grid.pictures import plot_sections, write_reports

        args = self.args
        choice = (args.baseline or BASELINE, args.show or ())
        text = to_markdown(sections, *choice)
        written = []
        with errors_as(UsageError, ImportError), errors_as(DataError, OSError):
            if args.tables is not None:
                write_text(Path(args.tables), text)
                written.append(Path(args.tables))
            if args.plots is not None:
                with new_folder(args.plots, args.overwrite) as folder:
                    names = [path.name for path in plot_sections(sections, folder, *choice)]
                written += [Path(args.plots, name) for name in names]
            if args.report is not None:
                written += write_reports(sections, Path(args.report), *choice, overwrite=args.overwrite)
        wrote = "\n".join(f"Wrote {path}." for path in written)
        values = {
            "results": args.results,
            "runs": len(results.runs),
            "written": [str(path) for path in written],
            "sections": [section.to_dict() for section in sections],
        }
        return Result("\n\n".join(filter(None, [text.rstrip(), wrote])), values)


def _add_grid(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("grid")
    group.add_argument(
        "--grid-preset",
        choices=list(GRID_PRESETS),
        default="quick",
        help="Methods, and the sparsities and patterns to measure them at (default: quick)",
    )
    group.add_argument(
        "--grid",
        metavar="FILE",
        help='JSON file with your own methods, {"name": {settings}} (default: those of --grid-preset)',
    )
    group.add_argument("--methods", nargs="+", metavar="NAME", help="Which of these methods to run (default: all)")
    group.add_argument(
        "--settings",
        type=_settings,
        metavar="JSON",
        default={},
        help="Settings for every method, as a JSON object (default: none)",
    )
    group.add_argument(
        "--sparsities", nargs="+", type=float, metavar="S", help="Shares to remove (default: those of --grid-preset)"
    )
    group.add_argument(
        "--patterns", nargs="+", metavar="N:M", help="N:M patterns to measure too (default: those of --grid-preset)"
    )
    group.add_argument(
        "--seeds", nargs="+", type=int, metavar="N", default=[0], help="Seeds for the calibration rows (default: 0)"
    )
    group.add_argument("--languages", nargs="+", metavar="NAME", help="Languages to calibrate on (default: all)")
    group.add_argument(
        "--rotate",
        type=int,
        metavar="K",
        help="Leave out each of K parts of the languages in turn, so that every language is unseen once (default: no)",
    )
    group.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="Also calibrate on each of these languages alone, with as many tokens as on all (default: none)",
    )
    group.add_argument(
        "--samples-per-language",
        type=int,
        metavar="N",
        default=ComparisonPlan.samples_per_language,
        help=f"Calibration chunks (default: {ComparisonPlan.samples_per_language})",
    )
    group.add_argument(
        "--sequence-length",
        type=int,
        metavar="N",
        default=ComparisonPlan.sequence_length,
        help=f"Tokens per chunk and window (default: {ComparisonPlan.sequence_length})",
    )


def _add_evaluation(parser: argparse.ArgumentParser) -> None:
    group = add_held_out_options(parser, required=False, tokens=ComparisonPlan.tokens_per_language)
    group.add_argument(
        "--tune",
        action="store_true",
        help="Calibrate on every other document of --dataset and evaluate on the rest, to choose settings without "
        "looking at the held-out text (default: no)",
    )
    group.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        default=EvaluationSettings.batch_size,
        help=f"Windows per forward pass of the evaluation (default: {EvaluationSettings.batch_size})",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("tables and pictures")
    group.add_argument(
        "--tables-only", action="store_true", help="Run nothing, only show what --results holds (default: run)"
    )
    group.add_argument("--baseline", metavar="NAME", help="Method to compare the others with (default: wanda)")
    group.add_argument(
        "--show", nargs="+", metavar="NAME", help="Methods to show in every language (default: baseline and best)"
    )
    group.add_argument(
        "--confidence",
        type=float,
        metavar="P",
        default=CONFIDENCE,
        help=f"Probability that an interval covers the true value (default: {CONFIDENCE})",
    )
    group.add_argument("--tables", metavar="FILE", help="Markdown file to write the tables to (default: none)")
    group.add_argument("--plots", metavar="FOLDER", help="Folder to write PNG and SVG pictures to (default: none)")
    group.add_argument("--report", metavar="FILE", help="HTML page to write (default: none)")
    add_overwrite(group)


def _settings(text: str) -> Mapping[str, Any]:
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid JSON: {error}") from error
    if not isinstance(settings, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object.")
    return settings
