"""What pruning changed in the scores of lm-evaluation-harness, per language."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...utils import markdown_table
from .results import HarnessReport, HarnessScore, Key


@dataclasses.dataclass(frozen=True)
class HarnessComparison:
    """What pruning changed in the harness's scores: pruned models against their dense original.

    Attributes:
        dense: Report of the dense model.
        pruned: Name to report of each pruned model, in the order of the columns.

    Raises:
        ValueError: If the reports do not cover the same scores on the same number of documents.
    """

    dense: HarnessReport
    pruned: Mapping[str, HarnessReport]

    def __post_init__(self) -> None:
        expected = {score.key: score.samples for score in self.dense.scores}
        for name, report in self.pruned.items():
            found = {score.key: score.samples for score in report.scores}
            different = [key for key in expected | found if expected.get(key) != found.get(key)]
            if different:
                raise ValueError(
                    f"The results of {name!r} and of the dense model differ in what was measured, first in "
                    f"{' '.join(filter(None, different[0]))} ({found.get(different[0], 0)} and "
                    f"{expected.get(different[0], 0)} documents): run both with the same tasks and --limit."
                )

    @property
    def languages(self) -> tuple[str, ...]:
        """All languages with a score, sorted."""
        return self.dense.languages

    def change(self, name: str, key: Key) -> float:
        """The score of a pruned model minus that of the dense one."""
        return self.pruned[name].by_key()[key].value - self.dense.by_key()[key].value

    def worst(self, name: str, keys: Iterable[Key]) -> Key:
        """The score that suffers most, among some of one metric."""
        dense = self.dense.by_key()
        return min(keys, key=lambda key: self.change(name, key) * (-1 if dense[key].higher_is_better is False else 1))

    def to_dict(self) -> dict[str, Any]:
        """The reports as plain JSON values."""
        return {
            "dense": self.dense.to_dict(),
            "pruned": {name: report.to_dict() for name, report in self.pruned.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "HarnessComparison":
        """Inverse of `to_dict`."""
        pruned = {name: HarnessReport.from_dict(report) for name, report in values["pruned"].items()}
        return cls(HarnessReport.from_dict(values["dense"]), pruned)

    def to_markdown(self) -> str:
        """A table of all scores; see `table`."""
        return markdown_table(*self.table())

    __str__ = to_markdown

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: every score with its standard error, dense and pruned, and the change.

        Scores of one benchmark and metric stand together. If they cover several languages, a row `mean` follows, in
        which every language counts equally, and a row `worst`, which names the language that suffers most.
        """
        header = ["benchmark", "metric", "language", "documents", "dense"]
        for name in self.pruned:
            header += [name, "change"]
        groups: dict[tuple[str, str], list[HarnessScore]] = {}
        for score in self.dense.scores:
            groups.setdefault((score.benchmark, score.metric), []).append(score)
        rows = []
        for (benchmark, metric), scores in groups.items():
            for score in scores:
                row = [benchmark, metric, score.language or "–", str(score.samples), _figure(score.value, score.stderr)]
                for name, report in self.pruned.items():
                    found = report.by_key()[score.key]
                    row += [_figure(found.value, found.stderr), f"{self.change(name, score.key):+.4f}"]
                rows.append(row)
            if len(scores) > 1:
                rows += self._summary(benchmark, metric, [score.key for score in scores])
        return header, rows

    def _summary(self, benchmark: str, metric: str, keys: Sequence[Key]) -> list[list[str]]:
        """The rows `mean` and `worst` of one benchmark and metric."""
        mean = [benchmark, metric, "**mean**", "", _figure(*_mean(self.dense, keys))]
        worst = [benchmark, metric, "**worst**", "", ""]
        for name, report in self.pruned.items():
            key = self.worst(name, keys)
            change = sum(self.change(name, each) for each in keys) / len(keys)
            mean += [_figure(*_mean(report, keys)), f"{change:+.4f}"]
            worst += [key[2], f"{self.change(name, key):+.4f}"]
        return [mean, worst]


def _mean(report: HarnessReport, keys: Sequence[Key]) -> tuple[float, float | None]:
    """Mean of independent scores with equal weights, and its standard error if each has one."""
    scores = [report.by_key()[key] for key in keys]
    errors = [score.stderr for score in scores if score.stderr is not None]
    error = math.hypot(*errors) / len(scores) if len(errors) == len(scores) else None
    return sum(score.value for score in scores) / len(scores), error


def _figure(value: float, stderr: float | None) -> str:
    return f"{value:.4f}" if stderr is None else f"{value:.4f} ± {stderr:.4f}"
