"""`SparsityPlan`: how sparse every block, or every matrix, becomes."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..modeling.weights import PrunableWeight
from ..storage.outputs import write_text
from ..utils import markdown_table

_SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """The part of a plan for one block.

    Attributes:
        name: Module path of the block.
        parameters: Number of prunable weights.
        importance: `D_b`; None for the uniform allocation, and in a plan that was searched.
        sparsity: Share of the prunable weights to prune.
        weights: Name of a matrix of the block to its own sparsity, of which `sparsity` is the mean, weighted by
            parameters. Empty if all of them get that of the block.
    """

    name: str
    parameters: int
    importance: float | None
    sparsity: float
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SparsityPlan:
    """Sparsity per block; look at it (`print(plan)`) or change it before anything is pruned.

    Attributes:
        target: Sparsity asked for.
        allocation: Name of the allocation, "search", or "edited" once it was changed.
        blocks: One entry per block, in the order of the model.
    """

    target: float
    allocation: str
    blocks: tuple[BlockPlan, ...]

    @property
    def planned(self) -> float:
        """Parameter-weighted mean of the block sparsities."""
        return sum(b.parameters * b.sparsity for b in self.blocks) / sum(b.parameters for b in self.blocks)

    def __getitem__(self, block: str) -> float:
        return self._block(block).sparsity

    def of(self, weight: PrunableWeight) -> float:
        """The sparsity of one matrix.

        Raises:
            KeyError: If its block is not in the plan.
        """
        block = self._block(weight.block)
        return block.weights.get(weight.name, block.sparsity)

    def _block(self, name: str) -> BlockPlan:
        for block in self.blocks:
            if block.name == name:
                return block
        raise KeyError(f"{name!r} is not a block of the plan. It has: {', '.join(b.name for b in self.blocks)}.")

    def replace(self, sparsities: Mapping[str, float]) -> "SparsityPlan":
        """A plan with other sparsities for some blocks and all matrices in them; the others stay, so the mean may move.

        Raises:
            KeyError: If a name is not a block of the plan.
            ValueError: If a sparsity lies outside [0, 1].
        """
        for name, sparsity in sparsities.items():
            self[name]
            if not 0 <= sparsity <= 1:
                raise ValueError(f"The sparsity of {name!r} must lie in [0, 1], not be {sparsity!r}.")
        blocks = tuple(
            dataclasses.replace(b, sparsity=sparsities[b.name], weights={}) if b.name in sparsities else b
            for b in self.blocks
        )
        return dataclasses.replace(self, allocation="edited", blocks=blocks)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {"schema": _SCHEMA, **dataclasses.asdict(self)}

    def to_json(self) -> str:
        """The plan as the text of a file that `load` reads."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan to a JSON file, for `load`.

        Raises:
            OSError: If the file cannot be written.
        """
        write_text(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "SparsityPlan":
        """Reads a plan that `save` wrote, perhaps edited since.

        Raises:
            OSError: If the file cannot be read.
            ValueError: If it holds no plan.
        """
        try:
            return _parse(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{os.fspath(path)} holds no plan that this version reads: {error}") from error

    def __str__(self) -> str:
        rows = [
            [b.name, f"{b.parameters:,}", "" if b.importance is None else f"{b.importance:.4f}", f"{b.sparsity:.4f}"]
            for b in self.blocks
        ]
        header = ["block", "parameters", "importance", "sparsity"]
        if any(b.weights for b in self.blocks):
            header.append("of its matrices")
            for row, block in zip(rows, self.blocks, strict=True):
                own = block.weights.values()
                row.append(f"{min(own):.2f} to {max(own):.2f}" if own else "")
        table = markdown_table(header, rows)
        return f"{table}\n{self.allocation} allocation, target {self.target:.4f}, planned {self.planned:.4f}"


def _parse(values: Any) -> SparsityPlan:
    """A plan from JSON values.

    Raises:
        AttributeError: If something is of a wrong type.
        KeyError: If something is missing.
        TypeError: As `AttributeError`.
        ValueError: If something is not allowed.
    """
    if values.get("schema") != _SCHEMA:
        raise ValueError(f"its schema is {values.get('schema')!r}, and not {_SCHEMA}.")
    blocks: list[BlockPlan] = []
    for entry in values["blocks"]:
        block = BlockPlan(
            str(entry["name"]), int(entry["parameters"]), entry["importance"], entry["sparsity"], dict(entry["weights"])
        )
        for name, sparsity in {block.name: block.sparsity, **block.weights}.items():
            if type(sparsity) not in (int, float) or not 0 <= sparsity <= 1:
                raise ValueError(f"the sparsity of {name!r} must be a number in [0, 1], and is {sparsity!r}.")
        low, high = min(block.weights.values(), default=0), max(block.weights.values(), default=1)
        if not low - 1e-6 <= block.sparsity <= high + 1e-6:
            raise ValueError(
                f"the sparsity of {block.name!r}, {block.sparsity!r}, is not the mean of those of its matrices: change "
                "these too, or give the block none (weights: {})."
            )
        if any(block.name == other.name for other in blocks):
            raise ValueError(f"{block.name!r} is there twice.")
        if block.parameters < 1:
            raise ValueError(f"{block.name!r} must have at least one parameter, and has {block.parameters}.")
        blocks.append(block)
    if not blocks:
        raise ValueError("it has no block.")
    return SparsityPlan(float(values["target"]), str(values["allocation"]), tuple(blocks))
