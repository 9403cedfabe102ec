"""What masking cost when an adapter was merged."""

import dataclasses
import math
from typing import Any

from ..evaluation.tables import to_json
from ..utils import markdown_table


@dataclasses.dataclass(frozen=True)
class MergedMatrix:
    """What an adapter did to a pruned matrix.

    Attributes:
        name: Name of the matrix in the merged model.
        update: Frobenius norm of all that the adapter would have added.
        lost: Norm of the part that was masked away, because it fell on pruned entries.
    """

    name: str
    update: float
    lost: float

    @property
    def error(self) -> float:
        """Relative error that masking makes in the update; 0 if there was no update."""
        return self.lost / self.update if self.update else 0.0


@dataclasses.dataclass(frozen=True)
class MergeReport:
    """What masking cost when an adapter was merged; `print` shows it.

    Attributes:
        matrices: The pruned matrices that the adapter changed, in the order of the model.
    """

    matrices: tuple[MergedMatrix, ...]

    @property
    def total(self) -> MergedMatrix:
        """All matrices as if they were one."""
        update, lost = (math.hypot(*(getattr(each, part) for each in self.matrices)) for part in ("update", "lost"))
        return MergedMatrix("all", update, lost)

    @property
    def error(self) -> float:
        """Relative error over all matrices."""
        return self.total.error

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        matrices = [{**dataclasses.asdict(each), "error": each.error} for each in self.matrices]
        return {"error": self.error, "matrices": matrices}

    def to_json(self) -> str:
        """The report as JSON."""
        return to_json(self.to_dict())

    def to_markdown(self) -> str:
        """A table with one row per matrix, and one for all."""
        named = [*((each.name, each) for each in self.matrices), ("**all**", self.total)]
        rows = [[name, f"{each.update:.4g}", f"{each.lost:.4g}", f"{each.error:.4f}"] for name, each in named]
        return markdown_table(["matrix", "update", "masked away", "relative error"], rows)

    __str__ = to_markdown
