"""`optimum-cli mwanda allocate`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..experiments.plans.evolution_defaults import CANDIDATES, CHUNKS, PROPOSED_BY, STEP, TOKENS
from ..storage.outputs import whole_file
from .base import Result, Subcommand, add_common_options
from .dataset import add_dataset_options, check_calibration_text, open_text
from .errors import DataError, UsageError, errors_as
from .models import add_model_options, check_measurable, check_prunable, load_model, load_tokenizer, pruning_errors
from .output import add_overwrite, add_restart, check_file, check_paths, open_journal
from .setting_flags import add_settings, read_settings

if TYPE_CHECKING:
    from ..configuration import MWandaConfig
    from ..pruning.sparsity_plan import SparsityPlan


class AllocateCommand(Subcommand):
    """Decide how sparse every block becomes, or search for the best sparsity of every matrix, and write the plan.

    The plan is a JSON file for `--plan` of `prune` and `apply`; it can be edited. With --search, plans are tried on a
    little of the calibration text, and the one whose predictions are closest to those of the dense model is written; if
    the search is stopped, the same command goes on.
    """

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declares the flags."""
        parser.description = AllocateCommand.__doc__
        parser.epilog = (
            f"Example: optimum-cli mwanda allocate MODEL plan.json --dataset texts.jsonl --sparsity 0.6 --search "
            f"{CANDIDATES[PROPOSED_BY]}"
        )
        parser.add_argument("model", metavar="MODEL", help="Folder or repository of the dense model")
        parser.add_argument("output", metavar="PLAN", help="File to write the plan to: plan.json")
        add_overwrite(parser)
        add_restart(parser, "forget the plans that a search that was stopped has tried")
        group = parser.add_argument_group("search")
        group.add_argument(
            "--search",
            type=int,
            metavar="N",
            help="How many plans to try at most; good numbers are "
            + " and ".join(f"{number} by {name}" for name, number in CANDIDATES.items())
            + " (default: none, the plan is that of the allocation)",
        )
        add_plan(group, "Plan to begin with, one that an earlier search found for example")
        group.add_argument(
            "--proposed-by",
            choices=tuple(CANDIDATES),
            default=PROPOSED_BY,
            help="What proposes plans: 'slopes' moves all matrices at once, from where pruning costs much to where it "
            "costs little, as a pass back through the pruned model tells; 'exchanges' lets pairs drawn by chance "
            f"exchange weights (default: {PROPOSED_BY})",
        )
        group.add_argument(
            "--step",
            type=float,
            default=STEP,
            metavar="SHARE",
            help=f"Sparsity that a matrix gains or loses at a time, by slopes at first (default: {STEP})",
        )
        group.add_argument(
            "--search-chunks",
            type=int,
            default=CHUNKS,
            metavar="N",
            help=f"Calibration chunks per language to try plans on (default: {CHUNKS})",
        )
        group.add_argument(
            "--search-tokens",
            type=int,
            default=TOKENS,
            metavar="N",
            help=f"Tokens of each of them, at most (default: {TOKENS})",
        )
        group.add_argument(
            "--worst",
            type=float,
            default=0.0,
            metavar="SHARE",
            help="Share of the language that suffers most in what is minimised; the rest is the mean over languages "
            "(default: 0)",
        )
        add_dataset_options(parser, required=False, purpose="Calibration text, not needed for magnitude pruning")
        add_model_options(parser)
        add_settings(parser)
        add_common_options(parser)

    def execute(self) -> Result:
        """Decides, and writes one file."""
        args, config = self.args, read_settings(self.args)
        check_paths(args, {"PLAN": args.output})
        target = check_file(args.output, args.overwrite)
        check_calibration_text(args.dataset, config)
        if args.restart and args.search is None:
            raise UsageError("--restart belongs to --search: without it, every run begins anew.")
        if args.plan is not None and args.search is None:
            raise UsageError("--plan belongs to --search, which begins with it: prune and apply take a plan as it is.")
        if args.search is not None and args.dataset is None:
            raise UsageError("--search tries plans on text: give --dataset.")
        start = read_plan(args)
        with errors_as(UsageError, OSError), whole_file(target, resumable=args.search is not None) as partial:
            plan, text = self._plan(config, start, partial)
            partial.write_text(plan.to_json(), encoding="utf-8")
        return Result(f"{text}\n\nWrote {args.output}.", {"output": args.output, **plan.to_dict()})

    def _plan(self, config: "MWandaConfig", start: "SparsityPlan | None", partial: Path) -> "tuple[SparsityPlan, str]":
        """The plan, and what to say about it."""
        args = self.args
        with open_text(args, config) as dataset:
            model = load_model(args.model, args, args.revision, warn=self.warn)
            tokenizer = load_tokenizer(args.model, args)
            check_prunable(model, config)
            with pruning_errors():
                if args.search is None:
                    from ..pruner import MWandaPruner

                    pruner = MWandaPruner(config, progress=not args.quiet)
                    needs_text = dataset is not None and config.needs_statistics
                    statistics = pruner.calibrate(model, dataset, tokenizer) if needs_text else None
                    plan = pruner.allocate(model, statistics)
                    return plan, str(plan)
                check_measurable(model)
                from ..experiments.plans.evolution import search_plan

                found = search_plan(
                    model,
                    dataset,
                    tokenizer,
                    config,
                    plan=start,
                    proposed_by=args.proposed_by,
                    candidates=args.search,
                    step=args.step,
                    chunks=args.search_chunks,
                    tokens=args.search_tokens,
                    worst=args.worst,
                    progress=not args.quiet,
                    journal=open_journal(args, partial),
                )
                return found.plan, str(found)


def add_plan(
    parser: argparse._ActionsContainer,
    purpose: str = "Plan that `allocate` wrote: the sparsity of every block or matrix",
) -> None:
    """Adds the flag that `read_plan` reads."""
    parser.add_argument("--plan", metavar="FILE", help=f"{purpose} (default: as --allocation says)")


def read_plan(args: argparse.Namespace) -> "SparsityPlan | None":
    """The plan that was given, if any.

    Raises:
        DataError: If the file cannot be read, or holds no plan.
    """
    if args.plan is None:
        return None
    from ..pruning.sparsity_plan import SparsityPlan

    with errors_as(DataError, OSError, ValueError):
        return SparsityPlan.load(args.plan)
