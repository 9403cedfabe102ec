"""What a search for a sparsity tried and found."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ...configuration import MWandaConfig
from ...evaluation import tables
from ...evaluation.report import PerplexityComparison
from ...utils import markdown_table
from ...values import plain
from .space import SearchSpace

PRUNED, PROTECTED, UNPROTECTED = "pruned", "protected", "unprotected"
"""Names in the comparison: of the pruned model, or of both models if languages are protected."""

_LIMITS = ("max_degradation", "bounds", "resolution", "strengths", "protect")


@dataclasses.dataclass(frozen=True)
class SparsityTrial:
    """One pruning that was measured.

    Attributes:
        sparsity: Share of the prunable weights to remove.
        strength: Allocation strength (lambda); None for the uniform allocation.
        achieved_sparsity: Counted share of zeros.
        degradations: Language to the increase of its bits per byte, as a fraction of the dense model's.
        feasible: Whether no degradation exceeds the limit.
    """

    sparsity: float
    strength: float | None
    achieved_sparsity: float
    degradations: Mapping[str, float]
    feasible: bool

    @property
    def worst_language(self) -> str:
        """The language that degrades most."""
        return max(self.degradations, key=lambda language: self.degradations[language])

    @property
    def worst(self) -> float:
        """Its degradation."""
        return self.degradations[self.worst_language]

    @property
    def mean(self) -> float:
        """Mean degradation over languages."""
        return sum(self.degradations.values()) / len(self.degradations)

    def to_dict(self) -> dict[str, Any]:
        """The trial as plain JSON values, derived figures included."""
        return {
            "sparsity": self.sparsity,
            "strength": self.strength,
            "achieved_sparsity": self.achieved_sparsity,
            "worst_language": self.worst_language,
            "worst": self.worst,
            "mean": self.mean,
            "feasible": self.feasible,
            "degradations": dict(self.degradations),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SparsityTrial":
        """Inverse of `to_dict`."""
        return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls)})

    def __str__(self) -> str:
        with_strength = "" if self.strength is None else f" with strength {self.strength:g}"
        return f"sparsity {self.sparsity:g}{with_strength}: {self.worst_language!r} {_percent(self.worst)}"


@dataclasses.dataclass(frozen=True)
class SparsitySearch:
    """The result of `find_sparsity`.

    Attributes:
        space: The limits of the search.
        trials: All trials, in order.
        comparison: The dense model and the one pruned at the chosen sparsity (`pruned`). If languages were protected,
            that model is called `protected`, and `unprotected` is one pruned at the same sparsity and strength without
            protection. No pruned model if nothing was found.
    """

    space: SearchSpace
    trials: tuple[SparsityTrial, ...]
    comparison: PerplexityComparison

    @property
    def chosen(self) -> SparsityTrial | None:
        """The feasible trial with the highest sparsity; among strengths, the best one for the worst language.

        None if no trial is feasible.
        """
        feasible = [trial for trial in self.trials if trial.feasible]
        return max(feasible, key=lambda trial: (trial.sparsity, -trial.worst), default=None)

    @property
    def verdict(self) -> str:
        """What was found, in a sentence or two."""
        chosen, limit = self.chosen, f"the {100 * self.space.max_degradation:g} % allowed"
        if chosen is None:
            least = min(self.trials, key=lambda trial: (trial.sparsity, trial.worst))
            return (
                f"No sparsity was found, not even the lowest: {least}, more than {limit}. Try lower bounds, or allow "
                "more degradation."
            )
        found = f"Found {chosen}, within {limit}."
        if chosen.sparsity == self.space.bounds[1]:
            return f"{found} That is the highest sparsity of the bounds: a higher one may also be feasible."
        above = [each for each in self.trials if each.strength == chosen.strength and each.sparsity > chosen.sparsity]
        return f"{found} The next one is too much: {min(above, key=lambda trial: trial.sparsity)}."

    @property
    def outcome(self) -> PerplexityComparison | None:
        """The dense model and the one that was found, as `pruned`, without the unprotected one."""
        if self.chosen is None:
            return None
        found = self.comparison.pruned[PROTECTED if self.space.protect else PRUNED]
        return dataclasses.replace(self.comparison, pruned={PRUNED: found})

    def to_dict(self) -> dict[str, Any]:
        """The search as plain JSON values, derived figures included."""
        return {
            "verdict": self.verdict,
            "chosen": None if self.chosen is None else self.chosen.to_dict(),
            **{name: plain(getattr(self.space, name)) for name in _LIMITS},
            "settings": self.space.config.to_dict(),
            "trials": [trial.to_dict() for trial in self.trials],
            "comparison": self.comparison.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SparsitySearch":
        """Inverse of `to_dict`."""
        limits = {name: values[name] for name in _LIMITS}
        space = SearchSpace(MWandaConfig.from_dict(values["settings"]), **limits)
        trials = tuple(SparsityTrial.from_dict(trial) for trial in values["trials"])
        return cls(space, trials, PerplexityComparison.from_dict(values["comparison"]))

    def to_json(self) -> str:
        """The search as JSON."""
        return tables.to_json(self.to_dict())

    def to_markdown(self) -> str:
        """The verdict, a table of all trials, and one of all languages at the chosen sparsity."""
        parts = [self.verdict, self._trials_table()]
        if self.space.protect and self.chosen is not None:
            parts.append(self._protection_table())
        elif self.chosen is not None:
            parts.append(self.comparison.to_markdown("bits_per_byte"))
        return "\n\n".join(parts)

    __str__ = to_markdown

    def _trials_table(self) -> str:
        chosen = self.chosen
        rows = [
            [
                number,
                "" if trial.strength is None else f"{trial.strength:g}",
                f"{trial.sparsity:g}",
                f"{trial.achieved_sparsity:.4f}",
                trial.worst_language,
                _percent(trial.worst),
                _percent(trial.mean),
                "**chosen**" if trial is chosen else "yes" if trial.feasible else "no",
            ]
            for number, trial in enumerate(self.trials, 1)
        ]
        header = ["trial", "strength", "sparsity", "achieved", "worst", "its change", "mean change", "allowed"]
        return markdown_table(header, rows)

    def _protection_table(self) -> str:
        """Degradation per language without and with protection, and the difference in points, with its interval."""
        before, after = (self.comparison.change(name, metric="bits_per_byte") for name in (UNPROTECTED, PROTECTED))
        difference = self.comparison.change(PROTECTED, UNPROTECTED, metric="bits_per_byte")
        rows = [
            [
                language,
                f"{self.space.protect.get(language, 1):g}",
                _percent(before.languages[language].value),
                _percent(after.languages[language].value),
                _points(*difference.languages[language]),
            ]
            for language in self.comparison.languages
        ]
        for name in ("mean", "worst"):
            values = [_percent(change.summary[name].value) for change in (before, after)]
            rows.append([f"**{name}**", "", *values, _points(*difference.summary[name])])
        return markdown_table(["language", "weight ×", UNPROTECTED, PROTECTED, "difference"], rows)


def _percent(value: float) -> str:
    return f"{100 * value:+.2f} %"


def _points(value: float, low: float | None, high: float | None) -> str:
    """Percentage points, with the ends of the interval if known."""
    interval = "" if low is None or high is None else f" [{100 * low:+.2f}, {100 * high:+.2f}]"
    return f"{100 * value:+.2f}{interval}"
