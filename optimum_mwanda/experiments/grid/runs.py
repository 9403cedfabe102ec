"""The results of a comparison: a file of JSON lines, one for every finished run."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...evaluation.report import PerplexityReport
from ..json_lines import append_line, whole_lines
from .methods import label


@dataclasses.dataclass(frozen=True)
class DenseResult:
    """The evaluation of the dense model, which all runs of a file share.

    Attributes:
        key: Digest of the model, the text and the way it was evaluated.
        languages: Languages from which all runs choose what to calibrate on.
        report: What was measured.
        about: How it was measured: versions, tokens per language.
    """

    key: str
    languages: tuple[str, ...]
    report: PerplexityReport
    about: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """One line, as plain JSON values."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"kind": "dense", **fields, "languages": list(self.languages), "report": self.report.to_dict()}


@dataclasses.dataclass(frozen=True)
class RunResult:
    """One pruned model.

    Attributes:
        key: Digest of the settings, the calibration text, the model and the evaluation.
        name: Name of the method.
        condition: Name of the calibration.
        fold: Part of a rotation, and of how many; None outside one.
        config: All settings.
        seen: Languages used for calibration.
        report: What was measured.
        about: Achieved sparsity, seconds of pruning (including the calibration, in the run that made it), versions.
    """

    key: str
    name: str
    condition: str
    fold: tuple[int, int] | None
    config: Mapping[str, Any]
    seen: tuple[str, ...]
    report: PerplexityReport
    about: Mapping[str, Any]

    @property
    def point(self) -> str:
        """The sparsity or the pattern, as the tables call it."""
        return label(self.config["sparsity"], self.config["pattern"])

    @property
    def sparsity(self) -> float | None:
        """The sparsity; None for a pattern."""
        return float(self.config["sparsity"]) if self.config["pattern"] == "unstructured" else None

    @property
    def seed(self) -> int:
        """Seed for choosing calibration rows."""
        return int(self.config["seed"])

    def to_dict(self) -> dict[str, Any]:
        """One line, as plain JSON values."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            "kind": "run",
            **fields,
            "seen": list(self.seen),
            "fold": self.fold and list(self.fold),
            "report": self.report.to_dict(),
        }


@dataclasses.dataclass(frozen=True)
class Results:
    """What a file holds.

    Attributes:
        dense: The dense model.
        runs: Key to run, in the order of the lines.
    """

    dense: DenseResult
    runs: dict[str, RunResult]

    @property
    def names(self) -> tuple[str, ...]:
        """The methods, in the order in which they first appear."""
        return tuple(dict.fromkeys(run.name for run in self.runs.values()))


def digest(values: Any) -> str:
    """SHA-256 of plain JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def read_results(path: Path) -> Results | None:
    """Reads a file of results; None if it does not exist or holds no finished line.

    A last line without a line break was left by an interrupted run and is not read.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If a line is not a result.
    """
    dense, runs = None, {}
    for number, line in enumerate(whole_lines(path), 1):
        try:
            values = json.loads(line)
            report = PerplexityReport.from_dict(values.pop("report"))
            if values.pop("kind") == "dense":
                values["languages"] = tuple(values["languages"])
                dense = DenseResult(report=report, **values)
            else:
                values |= {"seen": tuple(values["seen"]), "fold": values["fold"] and tuple(values["fold"])}
                run = RunResult(report=report, **values)
                runs[run.key] = run
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}: this is not a result of a comparison ({error!r}).") from error
    if dense is None:
        if runs:
            raise ValueError(f"{path} holds pruned models, but not the dense one: its first line is missing.")
        return None
    return Results(dense, runs)


def append(path: Path, result: DenseResult | RunResult) -> None:
    """Adds a line to a file of results."""
    append_line(path, result.to_dict())
