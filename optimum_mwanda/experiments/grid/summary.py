"""What the runs of a comparison say together: averages over seeds and folds, and their uncertainty."""

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from ...evaluation.bootstrap import Estimate
from ...evaluation.report import PerplexityComparison, PerplexityReport
from ...evaluation.scores import LanguageScore, Windows
from ...evaluation.settings import CONFIDENCE
from .intervals import mean_interval
from .results import Results, RunResult, digest

FIGURES = ("mean", "seen", "unseen", "worst")
LEFT_OUT = " (left out)"


@dataclasses.dataclass(frozen=True)
class Section:
    """All methods at one sparsity or pattern, after calibrations of one kind.

    In a rotation, every language is seen in some folds and left out of one. It then has two entries, and the second is
    called `sw (left out)`; both resample the same windows.

    Attributes:
        condition: Kind of the calibration.
        point: Sparsity or pattern, as it is shown.
        sparsity: The sparsity; None for a pattern.
        dense: Report of the dense model, with all entries.
        seen: Entries of languages used for calibration.
        seeds: Method to seed to report, averaged over folds.
        unfinished: Methods without a seed that has all folds.
        confidence: Probability that an interval covers the true value.
    """

    condition: str
    point: str
    sparsity: float | None
    dense: PerplexityReport
    seen: tuple[str, ...]
    seeds: Mapping[str, Mapping[int, PerplexityReport]]
    unfinished: tuple[str, ...]
    confidence: float

    def compare(self, methods: Iterable[str]) -> PerplexityComparison:
        """Methods against the dense model; log-perplexities are averaged over seeds, so their changes are exact."""
        pruned = {name: average(list(self.seeds[name].values())) for name in methods}
        return PerplexityComparison(self.dense, pruned, self.seen, self.confidence)

    def on_shared_seeds(self, one: str, other: str) -> "Section":
        """The two methods on the seeds that both have; on all their seeds if they share none."""
        shared = self.seeds[one].keys() & self.seeds[other].keys()
        kept = {
            name: {seed: report for seed, report in self.seeds[name].items() if seed in shared or not shared}
            for name in (one, other)
        }
        return dataclasses.replace(self, seeds=kept)

    def over_seeds(self, method: str) -> dict[str, Estimate]:
        """Increases of the log-perplexity, with intervals over seeds.

        Returns:
            `mean` over all entries, `seen` and `unseen` if there are any, and `worst`: the entry that suffers most on
            average over seeds.
        """
        together = self.compare([method])
        groups = {"mean": together.languages, "seen": self.seen, "unseen": together.unseen}
        entries = {name: group for name, group in groups.items() if group}
        entries["worst"] = (together.worst(method),)
        figures = {}
        for figure, group in entries.items():
            reports = self.seeds[method].values()
            values = [_mean(r.scores[each].nll - self.dense.scores[each].nll for each in group) for r in reports]
            figures[figure] = mean_interval(values, self.confidence)
        return figures

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain JSON values."""
        methods = {}
        for name, reports in self.seeds.items():
            figures = {key: estimate._asdict() for key, estimate in self.over_seeds(name).items()}
            methods[name] = {"seeds": list(reports), "worst_language": self.compare([name]).worst(name), **figures}
        return {
            "calibration": self.condition,
            "point": self.point,
            "methods": methods,
            "unfinished": list(self.unfinished),
        }

    def best(self) -> str:
        """The method with the lowest mean increase."""
        comparison = self.compare(self.seeds)
        return min(self.seeds, key=lambda name: comparison.mean_log_ratio(name) or 0.0)


def make_sections(results: Results, confidence: float = CONFIDENCE) -> list[Section]:
    """Groups runs by calibration, then by sparsity or pattern.

    If the settings behind a name changed between the runs of a file, the last ones with a finished seed count. A seed
    is finished once all its folds are.

    Returns:
        The sections: calibrations in the order in which they first appear, and within each the sparsities from low to
        high, then the patterns. Sections with nothing finished are left out.
    """
    groups: dict[tuple[str, str], list[RunResult]] = {}
    for run in results.runs.values():
        groups.setdefault((run.condition, run.point), []).append(run)
    conditions = list(dict.fromkeys(condition for condition, _ in groups))

    def place(group: list[RunResult]) -> tuple[int, float, str]:
        first = group[0]
        return conditions.index(first.condition), math.inf if first.sparsity is None else first.sparsity, first.point

    sections = (
        _section(runs[0].condition, runs[0].point, results.dense.report, runs, confidence)
        for runs in sorted(groups.values(), key=place)
    )
    return [section for section in sections if section.seeds]


def average(reports: Sequence[PerplexityReport]) -> PerplexityReport:
    """The mean log-perplexities of several models on the same text, entry by entry and window by window."""
    first = reports[0]
    scores = {name: _average([report.scores[name] for report in reports]) for name in first.scores}
    return dataclasses.replace(first, scores=scores)


def _average(scores: Sequence[LanguageScore]) -> LanguageScore:
    kept = [score.windows for score in scores if score.windows is not None]
    windows = None
    if len(kept) == len(scores):
        nll = tuple(_mean(values) for values in zip(*(each.nll for each in kept), strict=True))
        windows = Windows(nll, kept[0].tokens, kept[0].bytes)
    return dataclasses.replace(scores[0], nll=_mean(score.nll for score in scores), windows=windows)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found)


def _section(
    condition: str, point: str, dense: PerplexityReport, runs: Sequence[RunResult], confidence: float
) -> Section:
    """The section of the runs of one calibration at one point."""
    names = dict.fromkeys(run.name for run in runs)
    finished = {name: _finished([run for run in runs if run.name == name]) for name in names}
    counted = [run for seeds in finished.values() for folds in seeds.values() for run in folds]
    entries = _entries(dense.scores, counted)
    return Section(
        condition=condition,
        point=point,
        sparsity=runs[0].sparsity,
        dense=dataclasses.replace(dense, scores={entry: dense.scores[each] for (each, _), entry in entries.items()}),
        seen=tuple(entry for (_, is_seen), entry in entries.items() if is_seen),
        seeds={
            name: {seed: _over_folds(folds, entries) for seed, folds in seeds.items()}
            for name, seeds in finished.items()
            if seeds
        },
        unfinished=tuple(name for name, seeds in finished.items() if not seeds),
        confidence=confidence,
    )


def _entries(languages: Iterable[str], runs: Iterable[RunResult]) -> dict[tuple[str, bool], str]:
    """The roles, seen or left out, that each language has in some run, and the name of each role's entry.

    Returns:
        Language and whether it is seen to the name of its entry; languages in their order, the seen entry first.
    """
    seen = [run.seen for run in runs]
    found = {}
    for language in languages:
        roles = {language in each for each in seen}
        if True in roles:
            found[language, True] = language
        if False in roles:
            found[language, False] = language + LEFT_OUT if True in roles else language
    return found


def _finished(runs: Sequence[RunResult]) -> dict[int, list[RunResult]]:
    """Seed to folds of a method, for the last of its settings that have a finished seed."""
    found: dict[str, dict[int, dict[tuple[int, int] | None, RunResult]]] = {}
    for run in runs:
        settings = digest({key: value for key, value in run.config.items() if key not in ("seed", "languages")})
        found[settings] = found.pop(settings, {})  # keeps the latest settings last
        found[settings].setdefault(run.seed, {})[run.fold] = run
    for seeds in reversed(found.values()):
        if whole := {seed: list(folds.values()) for seed, folds in seeds.items() if _is_whole(folds)}:
            return whole
    return {}


def _is_whole(folds: Collection[tuple[int, int] | None]) -> bool:
    """Whether these are all folds of a rotation, or the single run without one."""
    return all(fold is None or fold[1] == len(folds) for fold in folds)


def _over_folds(folds: Sequence[RunResult], entries: Mapping[tuple[str, bool], str]) -> PerplexityReport:
    """The average over the folds in which a language has the role of an entry."""
    scores = {
        entry: _average([run.report.scores[language] for run in folds if (language in run.seen) is is_seen])
        for (language, is_seen), entry in entries.items()
    }
    return dataclasses.replace(folds[0].report, scores=scores)
