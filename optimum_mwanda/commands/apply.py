"""`optimum-cli mwanda apply`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..registry import CRITERIA
from .allocate import add_plan, read_plan
from .base import Result, Subcommand, add_common_options
from .errors import DataError, UsageError, errors_as
from .models import add_model_options, check_prunable, load_model, load_tokenizer, pruning_errors
from .output import add_overwrite, check_paths, new_folder
from .saving import add_storage_options, check_model_room, facts, summary, write_checkpoint
from .setting_flags import add_settings, read_settings

if TYPE_CHECKING:
    from ..configuration import MWandaConfig
    from ..record.schema import SparsityRecord


class ApplyCommand(Subcommand):
    """Prune with the statistics of `calibrate`, at one or several sparsities.

    With several sparsities, every model gets its own folder: OUT/sparsity-0.5, OUT/sparsity-0.6.
    """

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declares the flags."""
        parser.description = ApplyCommand.__doc__
        parser.epilog = "Example: optimum-cli mwanda apply MODEL stats.safetensors OUT --sparsity 0.5 0.6"
        parser.add_argument("model", metavar="MODEL", help="Folder or repository of the dense model")
        parser.add_argument("statistics", metavar="STATS", help="File that `calibrate` wrote")
        parser.add_argument("output", metavar="OUT", help="Folder to write to")
        parser.add_argument(
            "--sparsity",
            dest="sparsities",
            nargs="+",
            type=float,
            metavar="S",
            help="Shares of the prunable weights to remove, in [0, 1) (default: as in --config, or 0.5, or 1 - N/M)",
        )
        add_storage_options(parser)
        add_plan(parser)
        add_overwrite(parser)
        add_model_options(parser)
        add_settings(parser, leave_out=("sparsity",))
        add_common_options(parser)

    def execute(self) -> Result:
        """Prunes a fresh copy of the model for each sparsity; all folders appear together."""
        args = self.args
        check_paths(args, {"OUT": args.output})
        wanted = args.sparsities or [None]
        if len(set(wanted)) < len(wanted):
            raise UsageError("--sparsity names a value twice: give each one once.")
        configs = [read_settings(args, **({} if each is None else {"sparsity": each})) for each in wanted]
        _check(configs[0])
        if args.plan is not None and len(configs) > 1:
            raise UsageError("--plan gives one sparsity to every matrix: leave it out, or give one --sparsity.")
        self._plan = read_plan(args)
        records: dict[str, SparsityRecord] = {}
        with new_folder(args.output, args.overwrite) as folder:
            from ..calibration.statistics import CalibrationStatistics

            with errors_as(DataError, OSError, ValueError):
                statistics = CalibrationStatistics.load(args.statistics)
            for config in configs:
                name = f"sparsity-{config.target_sparsity:g}" if len(configs) > 1 else ""
                records[str(Path(args.output, name))] = self._prune(
                    config, statistics, folder / name, [each.target_sparsity for each in configs[len(records) :]]
                )
        lines = [f"{path}: {summary(record)}" for path, record in records.items()]
        models = [{"output": path, **facts(record)} for path, record in records.items()]
        return Result("\n".join(lines), {"models": models})

    def _prune(self, config: "MWandaConfig", statistics: Any, folder: Path, left: list[float]) -> "SparsityRecord":
        from ..pruner import MWandaPruner

        args = self.args
        model = load_model(args.model, args, args.revision, warn=self.warn)
        check_prunable(model, config)
        check_model_room(model, folder if folder.exists() else folder.parent, args, *left)
        with pruning_errors():
            MWandaPruner(config, progress=not args.quiet, restore_on_failure=False).apply(model, statistics, self._plan)
        return write_checkpoint(model, load_tokenizer(args.model, args), folder, args)


def _check(config: "MWandaConfig") -> None:
    """Refuses settings for which statistics are not enough."""
    if config.finds_weights:
        raise UsageError(
            "--language-weights minimax prunes several times and measures on text: use `prune` with --dataset, or give "
            "the weights that it found."
        )
    if not config.works_blockwise:
        return
    if CRITERIA[config.criterion].updates:
        what, instead = f"--criterion {config.criterion}", "another --criterion"
    elif config.reconstruction != "none":
        what, instead = f"--reconstruction {config.reconstruction}", "--reconstruction none"
    elif config.refinement != "none":
        what, instead = f"--refinement {config.refinement}", "--refinement none"
    else:
        what, instead = "--calibration sequential", "--calibration dense"
    raise UsageError(
        f"{what} looks at each block during pruning, so it needs the text itself: use `prune` with --dataset, or "
        f"give {instead}."
    )
