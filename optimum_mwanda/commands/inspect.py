"""`optimum-cli mwanda inspect`."""

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from .base import Result, Subcommand, add_common_options
from .errors import ModelError, errors_as
from .saving import summary

if TYPE_CHECKING:
    from ..record.parts import RecordedExperts
    from ..record.schema import SparsityRecord


class InspectCommand(Subcommand):
    """Show the sparsity record of a model, its zeros layer by layer, and whether the two agree.

    The model is not loaded: its weights are read one by one. The exit code is 4 if record and weights disagree.
    """

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declares the flags."""
        parser.description = InspectCommand.__doc__
        parser.epilog = "Example: optimum-cli mwanda inspect PRUNED"
        parser.add_argument("model", metavar="MODEL", help="Folder or repository of the pruned model")
        parser.add_argument("--revision", metavar="NAME", help="Branch, tag or commit of MODEL (default: main)")
        add_common_options(parser)

    def execute(self) -> Result:
        """Reads, counts and compares."""
        with errors_as(ModelError):
            from ..record.verification import sparsity_map, sparsity_record, verify_sparsity

            revision = {} if self.args.revision is None else {"revision": self.args.revision}
            record = sparsity_record(self.args.model, **revision)
            if record is None:
                raise ModelError(f"{self.args.model} has no sparsity record: it was not pruned with optimum-mwanda.")
            verification = verify_sparsity(self.args.model, **revision)
            shares = sparsity_map(self.args.model, **revision)
        text = "\n\n".join([_facts(record), _layers(record, shares), str(verification)])
        values = {
            "record": record.to_dict(),
            "sparsity": shares,
            "verification": {"ok": verification.ok, **dataclasses.asdict(verification)},
        }
        failure = None if verification.ok else "the weights differ from the sparsity record."
        return Result(text, values, failure)


def _facts(record: "SparsityRecord") -> str:
    from ..sharing.card_text import clean
    from ..utils import as_percent, markdown_table

    errors = [] if record.block_errors is None else [record.block_errors]
    rows: list[list[Any]] = [
        ["model", record.model or "(no name)"],
        ["sparsity asked for", f"{record.target_sparsity:.4f}"],
        ["sparsity achieved", f"{record.achieved_sparsity:.4f}"],
        ["seed", record.seed],
        ["earlier prunings", len(record.history)],
        *(
            ["error of the blocks' outputs", f"{as_percent(b)} before training, {as_percent(a)} after"]
            for b, a in errors
        ),
        *(["trained afterwards", f"{each.steps:,} steps ({each.recipe})"] for each in record.training),
        ["optimum-mwanda", record.library_version],
        *([name, version] for name, version in record.versions.items()),
        *(
            [f"calibrated on {language}", f"{found.tokens:,} tokens, weight {found.weight:.3f}"]
            for language, found in record.languages.items()
        ),
        *_experts(record.experts),
    ]
    # A line break in a string of the record could look like a row or a line of ours.
    cells = [[clean(cell) for cell in row] for row in rows]
    return f"{summary(record)}\n\n{markdown_table(['record', 'value'], cells)}"


def _experts(found: "RecordedExperts | None") -> list[list[Any]]:
    """How calibration reached the experts of a mixture."""
    if found is None:
        return []
    names = ", ".join(found.names) + (", ..." if len(found.names) < found.lacking else "")
    lacking = f"{found.lacking} of {found.count}"
    return [
        [f"experts below {found.wanted} tokens", f"{lacking} ({found.policy}): {names}" if names else lacking],
        ["fewest tokens of a language in an expert", found.fewest],
        *([f"experts without {language}", f"{count} of {found.count}"] for language, count in found.unreached.items()),
    ]


def _layers(record: "SparsityRecord", shares: dict[str, float]) -> str:
    """The share of zeros found: a row per block, a column per matrix, with the whole block first."""
    from ..utils import markdown_table

    paths = sorted({matrix.path for matrix in record.matrices})
    rows = []
    for block in record.blocks:
        found = [shares.get(f"{block.name}.{path}" if path else block.name) for path in paths]
        cells = ["" if value is None else f"{value:.4f}" for value in found]
        rows.append([block.name, f"{block.sparsity:.4f}", *cells])
    short = [path.rpartition(".")[2] for path in paths]
    return markdown_table(["block", "recorded", *(short if len(set(short)) == len(paths) else paths)], rows)
