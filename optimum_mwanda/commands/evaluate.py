"""`optimum-cli mwanda evaluate`."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.settings import CONFIDENCE, EvaluationSettings
from ..storage.outputs import write_text
from .base import Result, Subcommand, add_common_options
from .dataset import add_dataset_options, open_text
from .errors import DataError, UsageError, errors_as, one_line
from .launched import leave_to_first
from .models import add_model_options, check_measurable, load_config, load_model, load_tokenizer, pruning_errors
from .output import add_overwrite, check_file, check_paths
from .parser import with_default
from .saving import check_harness, read_harness
from .setting_flags import flag, form_of

if TYPE_CHECKING:
    from ..evaluation.harness.comparison import HarnessComparison
    from ..evaluation.report import PerplexityComparison, PerplexityReport
    from ..record.schema import SparsityRecord


class EvaluateCommand(Subcommand):
    """Measure perplexity and bits per byte in every language, also against the dense model.

    With --dense, both models read the same text, and the tables show what pruning cost in every language, with paired
    confidence intervals. --dense-report reuses an earlier evaluation of the dense model. For an encoder-decoder, the
    likelihood of targets given their sources is measured.
    """

    is_shared = True

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declares the flags."""
        parser.description = EvaluateCommand.__doc__
        parser.epilog = (
            "Example: optimum-cli mwanda evaluate PRUNED --dense MODEL --dataset held_out.jsonl --output report.json"
        )
        parser.add_argument("model", metavar="MODEL", help="Folder or repository of the model")
        dense = parser.add_mutually_exclusive_group()
        dense.add_argument("--dense", metavar="MODEL", help="The dense model to compare with (default: none)")
        dense.add_argument(
            "--dense-report",
            metavar="FILE",
            help="JSON report of the dense model, or of a comparison with it, on the same text (default: none)",
        )
        parser.add_argument(
            "--confidence",
            type=float,
            metavar="P",
            default=CONFIDENCE,
            help=f"Probability that an interval covers the true value (default: {CONFIDENCE})",
        )
        parser.add_argument(
            "--output",
            metavar="FILE",
            help="File to write the report to: .md for Markdown, .csv for a table, else JSON (default: none)",
        )
        parser.add_argument(
            "--report", metavar="FILE", help="HTML page to write, with sortable tables and pictures (default: none)"
        )
        parser.add_argument(
            "--harness",
            nargs=2,
            metavar=("DENSE", "PRUNED"),
            help="Results of lm-evaluation-harness to show on the page: the results_*.json of the dense model and of "
            "this one, or folders with them (default: none)",
        )
        add_overwrite(parser)
        add_dataset_options(parser, required=True, purpose="Held-out text")
        _add_settings(parser)
        add_model_options(parser, only_measured=True)
        add_common_options(parser)

    def execute(self) -> Result:
        """Evaluates one or two models, with one in memory at a time."""
        args = self.args
        target = None if args.output is None else check_file(args.output, args.overwrite)
        page = None if args.report is None else check_file(args.report, args.overwrite)
        check_paths(args, {"--output": args.output, "--report": args.report})
        harness = self._harness()
        for name in ("batch_size", "tokens_per_language"):
            if (value := getattr(args, name)) is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value}: give at least 1.")
        if not 0 < args.confidence < 1:
            raise UsageError(f"--confidence {args.confidence}: give a number between 0 and 1.")
        dense = None if args.dense_report is None else read_dense_report(Path(args.dense_report))
        if dense is not None and args.languages is not None:
            with errors_as(DataError, ValueError):
                dense = dense.select(args.languages)
        settings = self._settings(dense)
        for name, revision in ((args.model, args.revision), (args.dense, None)):
            if name is not None:
                load_config(name, args, revision)  # a wrong name must fail before a long evaluation
        with open_text(args, settings) as dataset:
            report, record = self._evaluate(args.model, dataset, settings, dense, args.revision)
            if args.dense is not None:
                dense = self._evaluate(args.dense, dataset, settings)[0]
        leave_to_first()
        result = report if dense is None else compare(dense, report, record, args.confidence)
        lines = tables(result)
        if target is not None:
            with errors_as(DataError, OSError):
                write_text(target, in_format_of(target, result))
            lines.append(f"Wrote {target}.")
        if page is not None:
            with errors_as(DataError, OSError):
                write_report(page, result, record, harness)
            lines.append(f"Wrote {page}.")
        return Result("\n\n".join(lines), result.to_dict())

    def _harness(self) -> "HarnessComparison | None":
        args = self.args
        if args.harness is None:
            return None
        if args.report is None:
            raise UsageError("--harness shows benchmarks on an HTML page: name the page with --report.")
        harness = read_harness(*args.harness)
        check_harness(harness, Path(args.model), args.model, self.warn)
        return harness

    def _settings(self, dense: "PerplexityReport | None") -> EvaluationSettings:
        """The settings that the flags give; the others are as in the report of the dense model."""
        names = [field.name for field in dataclasses.fields(EvaluationSettings)]
        given = {name: value for name in names if (value := getattr(self.args, name)) is not None}
        return EvaluationSettings(**{**({} if dense is None else dense.evaluation), **given})

    def _evaluate(
        self,
        name: str,
        dataset: Any,
        settings: EvaluationSettings,
        reference: "PerplexityReport | None" = None,
        revision: str | None = None,
    ) -> "tuple[PerplexityReport, SparsityRecord | None]":
        """The report of a model, and its sparsity record if it has a readable one."""
        from ..record.verification import sparsity_record

        args = self.args
        model = load_model(name, args, revision)
        try:
            record = sparsity_record(model)
        except ValueError as error:  # the model can be evaluated all the same
            self.warn(f"{name!r} is treated as a model without a record: {one_line(error)}")
            record = None
        report = measure(model, load_tokenizer(name, args), dataset, settings, reference, progress=not args.quiet)
        return report, record


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds a flag per setting; a flag that is not given leaves the value of --dense-report, or the default."""
    group = parser.add_argument_group("evaluation")
    for field in dataclasses.fields(EvaluationSettings):
        in_report = field.name in ("languages", "sequence_length", "tokens_per_language", "seed", "bos")
        default = f"as in --dense-report, or {field.default}" if in_report else field.default
        group.add_argument(
            flag(field.name), help=with_default(field.metadata["help"].rstrip("."), default), **form_of(field)
        )


def compare(
    dense: "PerplexityReport",
    pruned: "PerplexityReport",
    record: "SparsityRecord | None",
    confidence: float = CONFIDENCE,
) -> "PerplexityComparison":
    """Compares a pruned model with its dense original; its record, if it has one, names the calibrated languages.

    Raises:
        DataError: If they were not evaluated on the same text.
    """
    from ..evaluation.report import PerplexityComparison

    with errors_as(DataError, ValueError):
        seen = None if record is None else list(record.languages) or None
        return PerplexityComparison(dense, {"pruned": pruned}, seen, confidence)


def read_dense_report(path: Path) -> "PerplexityReport":
    """Reads the report of a dense model, from its own file or from a comparison.

    Raises:
        DataError: If it is neither.
    """
    from ..evaluation.report import PerplexityReport

    with errors_as(DataError, OSError):
        text = path.read_text(encoding="utf-8")
    try:
        values = json.loads(text)
        return PerplexityReport.from_dict(values.get("dense", values))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} does not hold a report of a dense model ({error!r}): write one with `optimum-cli mwanda evaluate "
            "DENSE_MODEL --dataset ... --output FILE`."
        ) from error


def tables(result: "PerplexityReport | PerplexityComparison") -> list[str]:
    """Markdown: scores, or what pruning changed in perplexity and in bits per byte."""
    from ..evaluation.report import PerplexityReport

    if isinstance(result, PerplexityReport):
        return [result.to_markdown()]
    return [result.to_markdown(), result.to_markdown("bits_per_byte")]


def in_format_of(path: Path, result: "PerplexityReport | PerplexityComparison") -> str:
    """The content of a report file, in the format given by the file's name."""
    if path.suffix == ".md":
        return "\n\n".join(tables(result)) + "\n"
    return str(result.to_pandas().to_csv(index=False)) if path.suffix == ".csv" else result.to_json()


def write_report(
    path: Path,
    result: "PerplexityReport | PerplexityComparison",
    record: "SparsityRecord | None",
    harness: "HarnessComparison | None" = None,
) -> None:
    """Writes the whole HTML page or nothing; with the sparsity record of the pruned model it also shows its blocks.

    Raises:
        OSError: If the file cannot be written.
    """
    from ..reporting.page import write_html_report

    write_html_report(path, result, record, harness=harness)


def measure(
    model: Any,
    tokenizer: Any,
    dataset: Any,
    settings: EvaluationSettings,
    reference: "PerplexityReport | None" = None,
    *,
    progress: bool,
    run: Any = None,
) -> "PerplexityReport":
    """Evaluates a model in every language.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        dataset: Held-out text.
        settings: What to read.
        reference: Report to compare with later.
        progress: Whether to show a progress bar.
        run: Runs the model over batches; None: batch by batch.

    Raises:
        DataError: If the dataset does not fit the model or the settings.
        ModelError: If perplexity is not defined for the model.
    """
    from ..evaluation.perplexity import measure_languages, run_each

    check_measurable(model)
    with pruning_errors():
        return measure_languages(model, tokenizer, dataset, settings, reference, progress, run or run_each)
