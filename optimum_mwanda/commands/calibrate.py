"""`optimum-cli mwanda calibrate`."""

import argparse
import dataclasses

from .base import Result, Subcommand, add_common_options
from .dataset import add_dataset_options, open_text
from .errors import DataError, errors_as
from .launched import leave_to_first
from .models import add_model_options, check_prunable, load_model, load_tokenizer, pruning_errors
from .output import add_overwrite, check_file, check_paths
from .setting_flags import add_settings, read_settings


class CalibrateCommand(Subcommand):
    """Run calibration text through the dense model and keep the statistics for `apply`.

    One calibration serves every sparsity, criterion and allocation.
    """

    is_shared = True

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declares the flags."""
        parser.description = CalibrateCommand.__doc__
        parser.epilog = "Example: optimum-cli mwanda calibrate MODEL stats.safetensors --dataset texts.jsonl"
        parser.add_argument("model", metavar="MODEL", help="Folder or repository of the dense model")
        parser.add_argument("statistics", metavar="STATS", help="File to write the statistics to: stats.safetensors")
        add_overwrite(parser)
        add_dataset_options(parser, required=True, purpose="Calibration text")
        add_model_options(parser)
        add_settings(parser, leave_out=("calibration",))
        add_common_options(parser)

    def execute(self) -> Result:
        """Calibrates and writes one file."""
        args = self.args
        config = read_settings(args)
        check_paths(args, {"STATS": args.statistics})
        target = check_file(args.statistics, args.overwrite)
        with open_text(args, config) as dataset:
            model = load_model(args.model, args, args.revision, warn=self.warn)
            tokenizer = load_tokenizer(args.model, args)
            check_prunable(model, config)
            with pruning_errors():
                from safetensors import SafetensorError

                from ..pruner import MWandaPruner

                statistics = MWandaPruner(config, progress=not args.quiet).calibrate(model, dataset, tokenizer)
        leave_to_first()
        with errors_as(DataError, OSError, SafetensorError):
            statistics.save(target)
        values = {
            "output": args.statistics,
            "model": statistics.model,
            "matrices": len(statistics.weights),
            "activities": list(statistics.activities),
            "languages": {entry.language: dataclasses.asdict(entry) for entry in statistics.coverage},
        }
        return Result(f"{statistics}\n\nWrote {args.statistics}.", values)
