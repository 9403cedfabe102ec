"""Results per language, and what pruning changed in them."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..utils import markdown_table


@dataclasses.dataclass(frozen=True)
class LanguageScore:
    """How well a model predicts the text of one language.

    Attributes:
        language: Code, as the dataset gives it.
        tokens: Predicted tokens; special tokens are not counted.
        nll: Mean negative log-likelihood per token, in nats.
        bytes: UTF-8 length of the text; None if only token ids were given.
    """

    language: str
    tokens: int
    nll: float
    bytes: int | None = None

    @property
    def perplexity(self) -> float:
        """`exp(nll)`, per token: comparable between models with one tokenizer, not between languages."""
        return math.exp(min(self.nll, 700.0))

    @property
    def bits_per_byte(self) -> float | None:
        """`nll · tokens / (ln 2 · bytes)`: comparable between tokenizers; None without a text."""
        return None if not self.bytes else self.nll * self.tokens / (math.log(2) * self.bytes)


@dataclasses.dataclass(frozen=True)
class PerplexityReport:
    """Scores of one model in several languages.

    Attributes:
        scores: Language to score, languages in sorted order.
        model: Name or path of the model.
        sequence_length: Tokens per evaluation window.
    """

    scores: dict[str, LanguageScore]
    model: str
    sequence_length: int

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values, derived figures included."""
        return {
            "model": self.model,
            "sequence_length": self.sequence_length,
            "languages": [
                {
                    **dataclasses.asdict(score),
                    "perplexity": score.perplexity,
                    "bits_per_byte": score.bits_per_byte,
                }
                for score in self.scores.values()
            ],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PerplexityReport":
        """Inverse of `to_dict`."""
        scores = [
            LanguageScore(entry["language"], entry["tokens"], entry["nll"], entry["bytes"])
            for entry in values["languages"]
        ]
        return cls({score.language: score for score in scores}, values["model"], values["sequence_length"])

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    def to_markdown(self) -> str:
        """A table with one row per language."""
        return markdown_table(
            ["language", "tokens", "nll", "perplexity", "bits per byte"],
            [
                [s.language, s.tokens, f"{s.nll:.4f}", f"{s.perplexity:.2f}", _decimal(s.bits_per_byte, 4)]
                for s in self.scores.values()
            ],
        )


@dataclasses.dataclass(frozen=True)
class PerplexityComparison:
    """What pruning costs per language: pruned models against their dense original, on the same text.

    Attributes:
        dense: Report of the dense model.
        pruned: Name to report of each pruned model, in the order of the columns.
        seen: Languages that were calibrated on; None if that is not known.

    Raises:
        ValueError: If the reports do not cover the same languages.
    """

    dense: PerplexityReport
    pruned: Mapping[str, PerplexityReport]
    seen: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name, report in self.pruned.items():
            if report.scores.keys() != self.dense.scores.keys():
                raise ValueError(
                    f"The report of {name!r} covers {', '.join(report.scores)}, that of the dense model "
                    f"{', '.join(self.dense.scores)}: evaluate both on the same dataset."
                )

    @property
    def languages(self) -> tuple[str, ...]:
        """All languages of the reports."""
        return tuple(self.dense.scores)

    @property
    def unseen(self) -> tuple[str, ...]:
        """Languages that were evaluated and not calibrated on."""
        return () if self.seen is None else tuple(name for name in self.languages if name not in self.seen)

    def log_ratio(self, name: str, language: str) -> float:
        """Increase of the log-perplexity over dense, in nats per token."""
        return self.pruned[name].scores[language].nll - self.dense.scores[language].nll

    def mean_log_ratio(self, name: str, languages: Iterable[str] | None = None) -> float | None:
        """Mean increase of the log-perplexity over some languages, by default all; None over no language."""
        increases = [self.log_ratio(name, each) for each in (self.languages if languages is None else languages)]
        return sum(increases) / len(increases) if increases else None

    def worst(self, name: str) -> str:
        """The language whose perplexity rises most."""
        return max(self.languages, key=lambda language: self.log_ratio(name, language))

    def summary(self, name: str) -> dict[str, float | None]:
        """Log-perplexity increases: `mean`, `seen`, `unseen` (means over languages) and `worst`."""
        seen = None if self.seen is None else [each for each in self.languages if each in self.seen]
        return {
            "mean": self.mean_log_ratio(name),
            "seen": None if seen is None else self.mean_log_ratio(name, seen),
            "unseen": self.mean_log_ratio(name, self.unseen),
            "worst": self.log_ratio(name, self.worst(name)),
        }

    def to_dict(self) -> dict[str, Any]:
        """Reports and summaries as plain JSON values."""
        return {
            "seen": None if self.seen is None else list(self.seen),
            "dense": self.dense.to_dict(),
            "pruned": {
                name: {
                    **report.to_dict(),
                    "log_perplexity_increase": self.summary(name),
                    "worst_language": self.worst(name),
                }
                for name, report in self.pruned.items()
            },
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PerplexityComparison":
        """Inverse of `to_dict`."""
        pruned = {name: PerplexityReport.from_dict(report) for name, report in values["pruned"].items()}
        return cls(PerplexityReport.from_dict(values["dense"]), pruned, values["seen"])

    def to_markdown(self) -> str:
        """Perplexity per language, dense and pruned, with the factor by which pruning raises it.

        Means over languages are geometric. A row `worst` names the language that suffers most.
        """
        known = self.seen is not None
        header = ["language", *(["calibrated"] if known else []), "dense"]
        for name in self.pruned:
            header += [name, "×"]
        rows = []
        for language in self.languages:
            row = [language, *(["yes" if language in (self.seen or ()) else "no"] if known else [])]
            row.append(f"{self.dense.scores[language].perplexity:.2f}")
            for name, report in self.pruned.items():
                row += [f"{report.scores[language].perplexity:.2f}", _factor(self.log_ratio(name, language))]
            rows.append(row)
        for label in ("mean", "seen", "unseen", "worst"):
            factors = [self.summary(name)[label] for name in self.pruned]
            if all(factor is None for factor in factors):
                continue
            row = [f"**{label}**", *([""] if known else []), ""]
            for name, factor in zip(self.pruned, factors, strict=True):
                row += [self.worst(name) if label == "worst" else "", _factor(factor)]
            rows.append(row)
        return markdown_table(header, rows)


def _factor(log_ratio: float | None) -> str:
    return "" if log_ratio is None else _decimal(math.exp(min(log_ratio, 700.0)), 3)


def _decimal(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
