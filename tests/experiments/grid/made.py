"""Results as a comparison would leave them, with figures chosen by hand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimum_mwanda import MWandaConfig, PerplexityReport
from optimum_mwanda.evaluation.scores import LanguageScore, Windows
from optimum_mwanda.experiments.grid.runs import DenseResult, Results, RunResult

LANGUAGES = ("en", "fr", "sw")


def make_report(nll: Mapping[str, float]) -> PerplexityReport:
    """Four windows of ten tokens per language, whose losses lie around the mean in the same way for all models."""
    scores = {}
    for language, value in nll.items():
        losses = tuple(10 * (value + step) for step in (-0.2, -0.1, 0.1, 0.2))
        scores[language] = LanguageScore(language, 40, value, 80, Windows(losses, (10,) * 4, (20,) * 4))
    return PerplexityReport(scores, "acme/model", 11)


DENSE = make_report(dict.fromkeys(LANGUAGES, 2.0))


def make_run(name: str, *increases: float, **changes: Any) -> RunResult:
    """A run that raises the losses of en, fr and sw by these amounts."""
    options: dict[str, Any] = {"seed": 0, "sparsity": 0.6, "pattern": "unstructured", "condition": "multilingual"}
    options |= {"fold": None, "seen": ("en", "fr"), **changes}
    config = MWandaConfig(
        seed=options["seed"],
        sparsity=options["sparsity"] if options["pattern"] == "unstructured" else None,
        pattern=options["pattern"],
    )
    report = make_report({each: 2.0 + more for each, more in zip(LANGUAGES, increases, strict=True)})
    key = str((name, sorted(options.items(), key=str)))
    return RunResult(key, name, options["condition"], options["fold"], config.to_dict(), options["seen"], report, {})


def make_results(*runs: RunResult) -> Results:
    return Results(DenseResult("dense", LANGUAGES, DENSE, {}), {run.key: run for run in runs})


def write(path: Path, results: Results) -> None:
    from optimum_mwanda.experiments.grid.runs import append

    for result in (results.dense, *results.runs.values()):
        append(path, result)
