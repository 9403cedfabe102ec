"""Results of lm-evaluation-harness, read from its files, per language."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...utils import portable_name
from ...values import check_types
from .tasks import ISO_CODES

Key = tuple[str, str, str]


@dataclasses.dataclass(frozen=True)
class HarnessScore:
    """One metric of one task.

    Attributes:
        benchmark: The task without its language: `xcopa`.
        language: Code, as the task gives it; empty if the task is not about one language.
        metric: Name in the harness: `acc`; with its filter, if it has one: `exact_match (strict)`.
        value: The figure, in the harness's unit: accuracies lie in [0, 1].
        stderr: Its standard error; None if the harness gives none.
        samples: Documents that were evaluated.
        higher_is_better: None if the harness does not say.
        dataset: Repository or builder of `datasets` that the task reads.
        split: Its split.
    """

    benchmark: str
    language: str
    metric: str
    value: float
    stderr: float | None
    samples: int
    higher_is_better: bool | None
    dataset: str
    split: str

    @property
    def key(self) -> Key:
        """What identifies a score of a model: benchmark, metric and language."""
        return self.benchmark, self.metric, self.language


@dataclasses.dataclass(frozen=True)
class HarnessReport:
    """What the harness measured on one model.

    Attributes:
        scores: Scores of the tasks; groups are left out, because means over languages follow from the tasks.
        model: Name or path of the model.
        version: Version of the harness.
    """

    scores: tuple[HarnessScore, ...]
    model: str
    version: str

    @classmethod
    def from_results(cls, results: Mapping[str, Any]) -> "HarnessReport":
        """Reads what `lm_eval.simple_evaluate` returns, or the content of a results file.

        Raises:
            ValueError: If it is neither.
        """
        try:
            scores = [score for task in results["configs"] for score in _task_scores(task, results)]
            version = str(results.get("lm_eval_version", ""))
            model = str(results.get("model_name") or results["config"]["model"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"These are not results of lm-evaluation-harness ({error!r}): give the results_*.json that `lm-eval "
                "run --output_path` writes, or what lm_eval.simple_evaluate returns."
            ) from error
        return cls(tuple(scores), model, version)

    @classmethod
    def from_files(cls, *paths: str | os.PathLike[str]) -> "HarnessReport":
        """Reads results files of one model, or folders of them; if a score was measured twice, the later one counts.

        Args:
            *paths: Files, or folders given to `lm-eval run --output_path`.

        Raises:
            FileNotFoundError: If there is no results file.
            ValueError: If a file does not hold results, or the results are of different models.
        """
        files = [
            file for path in map(Path, paths) for file in (path.rglob("results_*.json") if path.is_dir() else [path])
        ]
        if not files:
            raise FileNotFoundError(f"There is no results_*.json in {', '.join(map(str, paths)) or 'no folder'}.")
        dated = []
        for file in files:
            try:
                results = json.loads(file.read_text(encoding="utf-8"))
                report = cls.from_results(results)
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from error
            dated.append((results.get("date", 0.0), report))
        reports = [report for _, report in sorted(dated, key=lambda pair: pair[0])]
        models = sorted({report.model for report in reports})
        if len(models) > 1:
            raise ValueError(f"The results are of several models ({', '.join(models)}): give those of one model.")
        scores = {score.key: score for report in reports for score in report.scores}
        return cls(tuple(scores.values()), models[0], reports[-1].version)

    @property
    def languages(self) -> tuple[str, ...]:
        """All languages with a score, sorted."""
        return tuple(sorted({score.language for score in self.scores} - {""}))

    def by_key(self) -> dict[Key, HarnessScore]:
        """Key to score, in the order of the results."""
        return {score.key: score for score in self.scores}

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values, without paths of this machine."""
        return dataclasses.asdict(self) | {
            "model": portable_name(self.model),
            "scores": [dataclasses.asdict(score) for score in self.scores],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "HarnessReport":
        """Inverse of `to_dict`.

        Raises:
            ValueError: If a value has another type: cards show them.
        """
        scores = tuple(check_types(HarnessScore(**score)) for score in values["scores"])
        return check_types(cls(scores, values["model"], values["version"]))


def _task_scores(task: str, results: Mapping[str, Any]) -> list[HarnessScore]:
    config, values = results["configs"][task], results["results"][task]
    benchmark, language = _benchmark_and_language(task, config)
    better = results.get("higher_is_better", {}).get(task, {})
    scores = []
    for name, value in values.items():
        metric, comma, filter_name = name.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        stderr = values.get(f"{metric}_stderr,{filter_name}")
        scores.append(
            HarnessScore(
                benchmark=benchmark,
                language=language,
                metric=metric if filter_name == "none" else f"{metric} ({filter_name})",
                value=float(value),
                stderr=float(stderr) if isinstance(stderr, (int, float)) else None,
                samples=int(results["n-samples"][task]["effective"]),
                higher_is_better=None if better.get(metric) is None else bool(better[metric]),
                dataset=portable_name(str(config["dataset_path"])),
                split=str(config.get("test_split") or config.get("validation_split") or ""),
            )
        )
    return scores


def _benchmark_and_language(task: str, config: Mapping[str, Any]) -> tuple[str, str]:
    """Our own tasks say so in their metadata; the harness's names end in a configuration or a split."""
    metadata = config.get("metadata") or {}
    if "benchmark" in metadata and "language" in metadata:
        return str(metadata["benchmark"]), str(metadata["language"])
    for code in (config.get("dataset_name"), config.get("test_split")):
        if code and task.endswith(f"_{code}"):
            return task.removesuffix(f"_{code}"), ISO_CODES.get(code, code)
    return task, ""
