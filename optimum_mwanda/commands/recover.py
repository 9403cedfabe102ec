"""`optimum-cli mwanda recover`."""

import argparse
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.settings import EvaluationSettings
from ..legal import Number
from ..training.recovery_settings import RecoverySettings, check_recipe
from ..utils import duration
from .base import Result, Subcommand, add_common_options
from .dataset import add_dataset_options, add_held_out_options, open_held_out, open_text
from .errors import ModelError, UsageError, errors_as
from .evaluate import compare, measure, tables
from .models import add_model_options, load_model, load_tokenizer, pruning_errors
from .output import add_overwrite, check_paths, new_folder
from .parser import with_default
from .saving import add_storage_options, check_model_room, facts, own_report, summary, write_checkpoint
from .setting_flags import flag, form_of

if TYPE_CHECKING:
    from ..evaluation.report import PerplexityComparison, PerplexityReport
    from ..record.schema import SparsityRecord
    from ..training.merge_report import MergeReport
    from ..training.recovery import Recovery


class RecoverCommand(Subcommand):
    """Train a pruned model for a while, with its zeros kept and its languages in balance.

    With --eval-dataset, it is evaluated before and after in every language.
    """

    seconds: float = 0.0
    _earlier: "PerplexityComparison | None" = None

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declares the flags."""
        parser.description = RecoverCommand.__doc__
        parser.epilog = (
            "Example: optimum-cli mwanda recover PRUNED OUT --dataset texts.jsonl --tokens 1000000 "
            "--eval-dataset held_out.jsonl --dense MODEL"
        )
        parser.add_argument("model", metavar="MODEL", help="Folder or repository of the pruned model")
        parser.add_argument("output", metavar="OUT", help="Folder to write the recovered model to")
        parser.add_argument(
            "--dense",
            metavar="NAME",
            help="The dense model, to learn from with --recipe distill and to compare with (default: none)",
        )
        add_storage_options(parser)
        add_overwrite(parser)
        add_dataset_options(parser, required=True, purpose="Text to train on")
        add_held_out_options(parser, required=False)
        _add_settings(parser)
        add_model_options(parser)
        add_common_options(parser)

    def execute(self) -> Result:
        """Trains, and writes everything at once."""
        args = self.args
        settings = self._settings()
        check_paths(args, {"OUT": args.output})
        with new_folder(args.output, args.overwrite) as folder:
            recovery, tokenizer, evaluation = self._recover(settings, folder)
            record = write_checkpoint(recovery.model, tokenizer, folder, args, evaluation.for_card(record_of(recovery)))
        parts = [
            f"Trained for {recovery.steps:,} steps in {duration(self.seconds)}, on:\n\n{recovery.mix}",
            *([_merged(recovery.merge)] if recovery.merge is not None else []),
            summary(record),
            *evaluation.shown(record),
            f"Wrote {args.output}.",
        ]
        values = {
            "output": args.output,
            "recipe": settings.recipe,
            "steps": recovery.steps,
            "seconds": round(self.seconds, 3),
            "shares": recovery.mix.shares,
            "merge": None if recovery.merge is None else recovery.merge.to_dict(),
            "evaluation": {name: None if one is None else one.to_dict() for name, one in vars(evaluation).items()},
            **facts(record),
        }
        return Result("\n\n".join(parts), values)

    def _settings(self) -> RecoverySettings:
        args = self.args
        given = {
            field.name: value
            for field in dataclasses.fields(RecoverySettings)
            if (value := getattr(args, field.name)) is not None
        }
        with errors_as(UsageError, ValueError):
            settings = RecoverySettings(**given)
            check_recipe(settings.recipe, given)  # also if it is given as it would be without
            Number(at_least=1, whole=True).check("tokens_per_language", args.tokens_per_language)
        if args.dense is None and settings.recipe == "distill":
            raise UsageError("--recipe distill learns from the dense model: give --dense.")
        if args.dense is not None and settings.recipe != "distill" and args.eval_dataset is None:
            raise UsageError("--dense names a model to compare with on held-out text: give --eval-dataset, too.")
        if settings.recipe == "lora" and not _has_peft():
            raise UsageError("--recipe lora needs peft, which is not installed: pip install peft.")
        if settings.mix == "temperature" and args.streaming:
            raise UsageError(
                "--mix temperature looks at how much there is of each language, which nobody knows of a stream: leave "
                "out --streaming, or choose another mix."
            )
        if settings.mix == "need" and (args.dense is None or args.eval_dataset is None):
            self._earlier = own_report(Path(args.model)) if Path(args.model).is_dir() else None
            if self._earlier is None or len(self._earlier.pruned) != 1:
                raise UsageError(
                    "--mix need looks at what each language lost: give --dense and --eval-dataset, or a MODEL that was "
                    "pruned with --eval-dataset."
                )
        return settings

    def _recover(self, settings: RecoverySettings, folder: Path) -> "tuple[Recovery, Any, Evaluation]":
        from ..record.verification import sparsity_record
        from ..training.distillation_trainer import check_teacher
        from ..training.pruned_entries import read_masks
        from ..training.recovery import check_settings, recover

        args, is_quiet = self.args, self.args.quiet
        columns = EvaluationSettings(language_column=settings.language_column, text_column=settings.text_column)
        with open_text(args, columns) as dataset, open_held_out(args, columns) as held_out:
            model = load_model(args.model, args, args.revision, warn=self.warn)
            with errors_as(ModelError, ValueError):
                if sparsity_record(model) is None:
                    raise ModelError(
                        f"{args.model!r} is not pruned: it has no sparsity record. Prune it first, with `optimum-cli "
                        "mwanda prune`."
                    )
                read_masks(model)  # here a model that it does not fit is refused before it is evaluated
            with errors_as(UsageError, ValueError):
                check_settings(settings, model)
            tokenizer = load_tokenizer(args.model, args)
            check_model_room(model, folder, args, 0)
            evaluation = Evaluation()
            teacher = None if args.dense is None else load_model(args.dense, args)
            if settings.recipe == "distill":
                with errors_as(ModelError, ValueError):
                    check_teacher(teacher, model)
            if held_out is not None:
                evaluated = dataclasses.replace(
                    columns,
                    sequence_length=settings.sequence_length,
                    bos=settings.bos,
                    tokens_per_language=args.tokens_per_language,
                )
                if teacher is not None:
                    evaluation.dense = measure(teacher, tokenizer, held_out, evaluated, progress=not is_quiet)
                evaluation.before = measure(model, tokenizer, held_out, evaluated, progress=not is_quiet)
            if settings.recipe != "distill":
                teacher = None  # its memory is needed for the training
            start = time.monotonic()
            with pruning_errors():
                recovery = recover(
                    model,
                    dataset,
                    tokenizer,
                    teacher=teacher,
                    report=self._need(settings, evaluation),
                    progress=not is_quiet,
                    **dataclasses.asdict(settings),
                )
            self.seconds = time.monotonic() - start
            if held_out is not None:
                evaluation.after = measure(recovery.model, tokenizer, held_out, evaluated, progress=not is_quiet)
        return recovery, tokenizer, evaluation

    def _need(self, settings: RecoverySettings, evaluation: "Evaluation") -> "PerplexityComparison | None":
        """What each language lost; None if it does not matter."""
        if settings.mix != "need":
            return None
        if evaluation.dense is not None and evaluation.before is not None:
            return compare(evaluation.dense, evaluation.before, None)
        return self._earlier


@dataclasses.dataclass
class Evaluation:
    """What was measured on the held-out text, as far as it was asked for."""

    dense: "PerplexityReport | None" = None
    before: "PerplexityReport | None" = None
    after: "PerplexityReport | None" = None

    def for_card(self, record: "SparsityRecord") -> "PerplexityComparison | None":
        """The dense and the recovered model."""
        if self.dense is None or self.after is None:
            return None
        return compare(self.dense, self.after, record)

    def shown(self, record: "SparsityRecord") -> list[str]:
        """Tables of before and after; beside the dense model if it was evaluated."""
        from ..evaluation.report import PerplexityComparison

        if self.before is None or self.after is None:
            return []
        if self.dense is None:
            return [f"Before:\n\n{tables(self.before)[0]}", f"After:\n\n{tables(self.after)[0]}"]
        both = {"pruned": self.before, "recovered": self.after}
        return [PerplexityComparison(self.dense, both, list(record.languages) or None).to_markdown()]


def record_of(recovery: "Recovery") -> "SparsityRecord":
    """The record of a recovered model."""
    from ..record.schema import SparsityRecord

    return SparsityRecord.parse(recovery.model.config.mwanda_config)


def _has_peft() -> bool:
    from transformers.utils.import_utils import is_peft_available

    return bool(is_peft_available())


def _merged(report: "MergeReport") -> str:
    """One line about adapters; the table of all matrices is in the JSON values."""
    return (
        f"Merged adapters on {len(report.matrices)} matrices; masks took away {report.error:.2%} of what they learned."
    )


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for every setting."""
    group = parser.add_argument_group("training", "described in help(RecoverySettings) and docs/training.md")
    for field in dataclasses.fields(RecoverySettings):
        group.add_argument(
            flag(field.name), help=with_default(field.metadata["help"].rstrip("."), field.default), **form_of(field)
        )
