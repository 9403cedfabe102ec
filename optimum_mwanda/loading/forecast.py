"""What pruning a checkpoint takes, as values and as text."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..utils import duration, markdown_table

MODES = {"memory": "in memory", "stream": "streamed"}
"""Ways of pruning, and what they are called."""


@dataclasses.dataclass(frozen=True)
class ModeForecast:
    """What one way of pruning takes.

    Attributes:
        memory: Peak memory of the machine in bytes, beside what Python and the libraries take once they are imported.
        device_memory: Peak memory of the GPU in bytes; None if blocks run on the CPU.
        disk: Bytes that are needed on disk, for the output and what is kept until it is complete.
        seconds: How long pruning takes, without loading the model and writing the output; None if it was not timed.
    """

    memory: int
    device_memory: int | None
    disk: int
    seconds: float | None


@dataclasses.dataclass(frozen=True)
class PruningForecast:
    """What `plan_pruning` has found out; print it, or look at its parts.

    Attributes:
        model: Name of the model.
        architecture: Its class.
        dtype: Type in which it is pruned.
        stored_bytes: Size of the tensors in its files; None if it is not known.
        parameters: Number of all parameters.
        blocks: Module path of a block to the number of its matrices that are pruned and of the weights in them.
        left_dense: Why parameters stay as they are, to their number.
        sparsity: Share of the weights in these matrices to prune.
        languages: Number of languages in the calibration text.
        tokens: Tokens of the calibration text; 0 if the settings need none.
        passes: What the text runs through the blocks for, to the number of its passes.
        device: Where blocks run.
        memory: What it takes to prune with the model in memory.
        stream: What it takes to prune with the blocks left on disk.
        untimed: Why there is no estimate of the time; empty if there is one.
        unstreamed: Why blocks cannot be left on disk; empty if they can.
    """

    model: str
    architecture: str
    dtype: str
    stored_bytes: int | None
    parameters: int
    blocks: Mapping[str, tuple[int, int]]
    left_dense: Mapping[str, int]
    sparsity: float
    languages: int
    tokens: int
    passes: Mapping[str, int]
    device: str
    memory: ModeForecast
    stream: ModeForecast
    untimed: str = ""
    unstreamed: str = ""

    @property
    def matrices(self) -> int:
        """Number of matrices that are pruned."""
        return sum(count for count, _ in self.blocks.values())

    @property
    def prunable(self) -> int:
        """Number of weights in these matrices."""
        return sum(count for _, count in self.blocks.values())

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        blocks = [
            {"name": name, "matrices": matrices, "parameters": parameters}
            for name, (matrices, parameters) in self.blocks.items()
        ]
        return {**dataclasses.asdict(self), "matrices": self.matrices, "prunable": self.prunable, "blocks": blocks}

    def __str__(self) -> str:
        share = self.prunable / self.parameters
        stored = "" if self.stored_bytes is None else f", {in_bytes(self.stored_bytes)} in its files"
        head = f"{self.model}: {self.architecture} with {self.parameters:,} parameters in {self.dtype}{stored}."
        what = (
            f"{self.sparsity:.2%} of {self.prunable:,} weights would be pruned ({share:.1%} of the model), in "
            f"{self.matrices:,} matrices of {len(self.blocks)} blocks."
        )
        passes = ", ".join(f"{count} for {purpose}" for purpose, count in self.passes.items())
        text = (
            f"Passes through the blocks: {passes}, over {self.tokens:,} tokens in {self.languages} languages."
            if self.tokens
            else "No text is read."
        )
        return "\n\n".join([f"{head} {what}", self._blocks_table(), self._dense_table(), text, self._modes_table()])

    def _blocks_table(self) -> str:
        """Blocks that are alike and follow each other in one row."""
        rows: list[list[Any]] = []
        for name, (matrices, parameters) in self.blocks.items():
            counts = [f"{matrices:,}", f"{parameters:,}"]
            if rows and rows[-1][1:] == counts:
                rows[-1][0] = f"{rows[-1][0].partition(' to ')[0]} to {name}"
            else:
                rows.append([name, *counts])
        return markdown_table(["block", "matrices", "weights"], rows)

    def _dense_table(self) -> str:
        rows = [[reason, f"{count:,}"] for reason, count in self.left_dense.items()]
        return markdown_table(["stays dense", "parameters"], rows)

    def _modes_table(self) -> str:
        modes = {"memory": self.memory, "stream": self.stream}
        rows = []
        for name, mode in modes.items():
            seconds = "not known" if mode.seconds is None else duration(mode.seconds)
            device = [] if mode.device_memory is None else [in_bytes(mode.device_memory)]
            rows.append([MODES[name], in_bytes(mode.memory), *device, in_bytes(mode.disk), seconds])
        on_device = [] if self.memory.device_memory is None else [f"on {self.device}"]
        table = markdown_table(["mode", "peak memory", *on_device, "disk", "time"], rows)
        notes = "Memory is counted beside Python and the libraries, time without loading the model and writing it."
        reasons = {"Not timed": self.untimed, "Cannot be streamed": self.unstreamed}
        return "\n\n".join([table, notes, *(f"{what}: {reason}" for what, reason in reasons.items() if reason)])


def in_bytes(count: int) -> str:
    """A size as people say it: 950 MB, 12.3 GB."""
    return f"{count / 1e6:,.0f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"
