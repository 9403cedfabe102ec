"""`optimum-cli mwanda prune`."""

import argparse
import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.settings import EvaluationSettings
from ..utils import duration
from .allocate import add_plan, read_plan
from .base import Result, Subcommand, add_common_options
from .dataset import add_dataset_options, add_held_out_options, check_calibration_text, open_held_out, open_text
from .dry_run import dry_run
from .errors import DataError, HubError, UsageError, errors_as, one_line
from .evaluate import compare, measure, write_report
from .launched import from_first, is_first, leave_to_first
from .models import add_model_options, check_prunable, load_model, load_tokenizer, one_device, pruning_errors
from .output import (
    add_overwrite,
    add_restart,
    check_file,
    check_folder,
    check_paths,
    new_folder,
    open_journal,
    progress_bytes,
)
from .saving import add_storage_options, check_model_room, facts, summary, write_checkpoint
from .setting_flags import add_settings, read_settings

if TYPE_CHECKING:
    from ..configuration import MWandaConfig
    from ..data.language_coverage import LanguageCoverage
    from ..evaluation.report import PerplexityComparison
    from ..record.schema import SparsityRecord


class PruneCommand(Subcommand):
    """Calibrate on a multilingual dataset, prune, and write the model with its card.

    With --eval-dataset, the dense and the pruned model are evaluated and compared per language.
    """

    is_shared = True
    coverage: "tuple[LanguageCoverage, ...]" = ()
    seconds: float = 0.0

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declares the flags."""
        parser.description = PruneCommand.__doc__
        parser.epilog = (
            "Example: optimum-cli mwanda prune MODEL OUT --dataset texts.jsonl "
            "--sparsity 0.5 --eval-dataset held_out.jsonl"
        )
        parser.add_argument("model", metavar="MODEL", help="Folder or repository of the dense model")
        parser.add_argument("output", metavar="OUT", help="Folder to write the pruned model to")
        add_storage_options(parser)
        add_plan(parser)
        parser.add_argument("--push-to-hub", metavar="ID", help="Repository to push the result to (default: none)")
        parser.add_argument(
            "--private", action="store_true", help="Make a new repository private (default: as your namespace does)"
        )
        parser.add_argument(
            "--activations",
            metavar="PLACE",
            default="device",
            help="Where hidden states lie while blocks are pruned one after the other: device, cpu, or a folder for a "
            "memory-mapped file (default: device)",
        )
        parser.add_argument(
            "--stream",
            action="store_true",
            help="Leave the blocks on disk and hold no more than two of them in memory, and the rest of MODEL; if this "
            "is stopped, the same command goes on (default: load MODEL into memory)",
        )
        add_restart(parser, "forget what a run with --stream that was stopped has finished")
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="Prune nothing and write nothing: say what would be pruned and what it would take, as the command "
            "plan does (default: prune)",
        )
        add_overwrite(parser)
        add_dataset_options(parser, required=False, purpose="Calibration text, not needed for magnitude pruning")
        group = add_held_out_options(parser, required=False)
        group.add_argument(
            "--report", metavar="FILE", help="HTML page to write, with sortable tables and pictures (default: none)"
        )
        add_model_options(parser)
        add_settings(parser)
        add_common_options(parser)

    def execute(self) -> Result:
        """Prunes and writes everything at once."""
        args, config = self.args, read_settings(self.args)
        page = None if args.report is None else check_file(args.report, args.overwrite)
        check_paths(args, {"OUT": args.output, "--report": args.report})
        if args.dry_run:
            check_folder(args.output, args.overwrite)
            self._check(config)
            return dry_run(args, config)
        with new_folder(args.output, args.overwrite, resumable=args.stream) as folder:
            self._check(config)
            model, tokenizer, report = self._prune(config, folder)
            leave_to_first()
            record = write_checkpoint(model, tokenizer, folder, args, report)
        parts = [*self._calibrated(), summary(record), *([report.to_markdown()] if report else [])]
        parts.append(f"Wrote {args.output}.")
        if page is not None and report is not None:
            self._write_report(page, report, record)
            parts.append(f"Wrote {page}.")
        pushed = None if args.push_to_hub is None else self._push(model, report)
        if pushed is not None:
            parts.append(f"Pushed to {pushed}.")
        values = {
            "output": args.output,
            "report": args.report,
            "pushed": pushed,
            "evaluation": None if report is None else report.to_dict(),
            "seconds": round(self.seconds, 3),
            "coverage": {entry.language: dataclasses.asdict(entry) for entry in self.coverage},
            **facts(record),
        }
        return Result("\n\n".join(parts), values)

    def _calibrated(self) -> list[str]:
        """What the model was calibrated on, and how long it took."""
        from ..data.language_coverage import coverage_table

        time_taken = f"Pruned in {duration(self.seconds)}"
        if not self.coverage:
            return [f"{time_taken}."]
        return [f"{time_taken}, calibrated on:\n\n{coverage_table(self.coverage)}"]

    def _prune(self, config: "MWandaConfig", folder: Path) -> "tuple[Any, Any, PerplexityComparison | None]":
        """The pruned model, its tokenizer, and the evaluation if one was asked for."""
        args, plan = self.args, read_plan(self.args)
        with (
            open_text(args, config) as dataset,
            open_held_out(args, config) as held_out,
        ):
            offload = None
            if args.stream:
                from ..loading.streamed import offload_folder

                folder = from_first(folder)
                offload = offload_folder(folder)
            model = load_model(args.model, args, args.revision, warn=self.warn, offload=offload, blocks=config.blocks)
            tokenizer = load_tokenizer(args.model, args)
            check_prunable(model, config)
            pruned = sum(parameter.nbytes for parameter in model.parameters()) if args.stream else 0
            kept = max(0, pruned - progress_bytes(args.output))
            check_model_room(model, folder, args, config.target_sparsity, kept=kept)
            dense = None if held_out is None else self._evaluate(model, tokenizer, held_out, config)
            with pruning_errors():
                from ..pruner import MWandaPruner
                from ..record.verification import sparsity_record

                pruner = MWandaPruner(
                    config,
                    progress=not args.quiet,
                    restore_on_failure=False,
                    activations=args.activations,
                    journal=open_journal(args, folder) if args.stream else None,
                )
                start = time.monotonic()
                pruner.prune(model, dataset, tokenizer, plan)
                self.coverage, self.seconds = pruner.coverage, time.monotonic() - start
            if dense is None:
                return model, tokenizer, None
            pruned = self._evaluate(model, tokenizer, held_out, config)
            return model, tokenizer, compare(dense, pruned, sparsity_record(model))

    def _check(self, config: "MWandaConfig") -> None:
        """Checks at once for errors that would otherwise appear after hours."""
        from ..walking.store import check_activations

        check_calibration_text(self.args.dataset, config)
        with errors_as(UsageError, ValueError):
            check_activations(self.args.activations)
        if self.args.stream and self.args.device_map is not None and one_device(self.args.device_map) is None:
            raise UsageError("--stream runs all blocks on one device: give --device-map cpu, cuda or cuda:N.")
        if self.args.stream and config.finds_settings:
            what = "--language-weights minimax" if config.finds_weights else "--tune-regularisation"
            raise UsageError(
                f"{what} tries settings on the whole model in memory: leave out --stream, or do this on a machine that "
                "holds the model, and give the settings that were found there."
            )
        if self.args.stream and config.calibration_tolerance is not None and config.needs_statistics:
            raise UsageError(
                "--calibration-tolerance needs the whole model in memory: leave out --stream, or choose with "
                "--samples-per-language how much is read."
            )
        if self.args.restart and not self.args.stream:
            raise UsageError("--restart belongs to --stream: without it, every run begins anew.")
        if self.args.report is not None and self.args.eval_dataset is None:
            raise UsageError("--report shows an evaluation: give --eval-dataset too.")
        if self.args.push_to_hub is not None:
            from huggingface_hub import get_token

            if not get_token():
                raise HubError("--push-to-hub needs a token with write access: run `hf auth login`, or set HF_TOKEN.")

    def _evaluate(self, model: Any, tokenizer: Any, held_out: Any, config: "MWandaConfig") -> Any:
        args = self.args
        settings = EvaluationSettings.like(config, tokens_per_language=args.tokens_per_language)
        run = None
        if args.stream:
            from ..walking.running import run_block_by_block
            from ..walking.store import make_store

            store = partial(make_store, args.activations)
            show = not args.quiet and is_first()
            run = partial(run_block_by_block, store=store, path=config.blocks, progress=show)
        return measure(model, tokenizer, held_out, settings, progress=not args.quiet, run=run)

    def _write_report(self, page: Path, report: "PerplexityComparison", record: "SparsityRecord") -> None:
        try:
            write_report(page, report, record)
        except OSError as error:
            raise DataError(
                f"{self.args.output} is complete, but the report cannot be written: {one_line(error)} Write it with "
                f"`optimum-cli mwanda evaluate` and --dense-report {self.args.output}/evaluation.json."
            ) from error

    def _push(self, model: Any, report: "PerplexityComparison | None") -> str:
        from ..sharing.hub import push_folder
        from ..sharing.model_card import describe

        args = self.args
        try:
            card = dataclasses.replace(describe(model, report, args.base_model), compressed=args.compressed)
            info = push_folder(Path(args.output), args.push_to_hub, card, private=args.private or None)
        except Exception as error:
            raise HubError(
                f"{args.output} is complete, but the push failed: {one_line(error)} "
                f"Push it with `hf upload {args.push_to_hub} {args.output}`."
            ) from error
        return str(info.repo_url)
