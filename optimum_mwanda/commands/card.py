"""`optimum-cli mwanda card`."""

import argparse
from pathlib import Path

from ..sharing.names import CARD_NAME
from .base import Result, Subcommand, add_common_options
from .errors import ModelError, UsageError, errors_as
from .saving import (
    check_harness,
    own_harness,
    own_report,
    read_harness,
    read_report,
    repositories_on_card,
)


class CardCommand(Subcommand):
    """Write the model card (README.md) of a pruned model, or update our section of it.

    Everything else in the card stays.
    """

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declares the flags."""
        parser.description = CardCommand.__doc__
        parser.epilog = "Example: optimum-cli mwanda card PRUNED --report report.json"
        parser.add_argument("model", metavar="MODEL_PATH", help="Folder of the pruned model")
        parser.add_argument(
            "--report",
            metavar="FILE",
            help="Evaluation to show, as written by `evaluate --dense`; saved in the folder as evaluation.json "
            "(default: the evaluation.json in the folder)",
        )
        parser.add_argument(
            "--harness",
            nargs=2,
            metavar=("DENSE", "PRUNED"),
            help="Results of lm-evaluation-harness to show: the results_*.json of the dense model and of this one, or "
            "folders with them; saved in the folder as harness.json (default: the harness.json in the folder)",
        )
        parser.add_argument(
            "--repo-id", metavar="ID", help="Repository for the model (default: the one named on the card)"
        )
        parser.add_argument(
            "--base-model", metavar="ID", help="Repository of the dense model (default: as on card or record)"
        )
        add_common_options(parser)

    def execute(self) -> Result:
        """Writes the card into the folder of the model."""
        args = self.args
        folder = Path(args.model)
        if not folder.is_dir():
            raise UsageError(f"There is no folder {args.model!r}: give the folder of a pruned model.")
        report = own_report(folder) if args.report is None else read_report(Path(args.report))
        harness = own_harness(folder) if args.harness is None else read_harness(*args.harness)
        with errors_as(ModelError):
            from ..sharing.folder import write_evaluations
            from ..sharing.model_card import save_card
            from ..storage.files import is_compressed

            known = repositories_on_card(folder / CARD_NAME)
            repo_id = args.repo_id or known.get("repo_id")
            if args.harness is not None and harness is not None:
                check_harness(harness, folder, repo_id, self.warn)
            path = save_card(
                folder,
                folder,
                repo_id=repo_id,
                report=report,
                harness=harness,
                base_model=args.base_model or known.get("base_model"),
                compressed=is_compressed(folder),
            )
            # What was not given is already in the folder.
            write_evaluations(
                folder, None if args.report is None else report, None if args.harness is None else harness
            )
        return Result(f"Wrote {path}.", {"output": str(path)})
