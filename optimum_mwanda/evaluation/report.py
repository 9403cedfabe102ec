"""Results per language, and what pruning changed in them."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..utils import as_percent, markdown_table, portable_name
from ..values import check_types
from . import tables
from .bootstrap import check_confidence
from .changes import METRICS, Change, Metric, measure_change
from .scores import LanguageScore
from .settings import CONFIDENCE

if TYPE_CHECKING:
    import pandas
    from datasets import Dataset


@dataclasses.dataclass(frozen=True)
class PerplexityReport:
    """Scores of one model in several languages.

    Attributes:
        scores: Language to score, languages in sorted order.
        model: Name or path of the model.
        sequence_length: Tokens per evaluation window.
        tokens_per_language: Most tokens to evaluate per language; None in reports of old versions.
        seed: Seed for choosing rows; None in reports of old versions.
        bos: As in `EvaluationSettings`; "none" in reports of old versions.
    """

    scores: dict[str, LanguageScore]
    model: str
    sequence_length: int
    tokens_per_language: int | None = None
    seed: int | None = None
    bos: str = "none"

    @property
    def evaluation(self) -> dict[str, Any]:
        """Arguments that make `evaluate_languages` choose the same text of the same dataset, as far as known."""
        known = {
            "languages": list(self.scores),
            "sequence_length": self.sequence_length,
            "tokens_per_language": self.tokens_per_language,
            "seed": self.seed,
            "bos": self.bos,
        }
        return {name: value for name, value in known.items() if value is not None}

    def select(self, languages: str | Sequence[str]) -> "PerplexityReport":
        """Selects some languages of the report.

        Raises:
            ValueError: If the report does not cover one of them, or none is named.
        """
        wanted = {languages} if isinstance(languages, str) else set(languages)
        if not wanted:
            raise ValueError("languages=[] names no language: give some, or leave it out.")
        if missing := wanted - self.scores.keys():
            raise ValueError(
                f"The report of {self.model!r} covers {', '.join(self.scores)}, not {', '.join(sorted(missing))}: "
                "evaluate these languages with that model too, or leave them out."
            )
        return dataclasses.replace(self, scores={name: each for name, each in self.scores.items() if name in wanted})

    def check_text(self, digests: Mapping[str, str]) -> None:
        """Checks that the report is on the same text, as far as its text is known.

        Args:
            digests: Language to SHA-256 of its tokens, as in `LanguageScore.digest`.

        Raises:
            ValueError: If it is on other text.
        """
        for language, score in self.scores.items():
            if score.digest is not None and digests.get(language) != score.digest:
                raise ValueError(
                    f"The report of {self.model!r} is on different text or windows in {language!r}: evaluate both "
                    "models with the same dataset, tokenizer, sequence_length, tokens_per_language, seed and bos."
                )

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values, derived figures included."""
        return {
            "model": self.model,
            "sequence_length": self.sequence_length,
            "tokens_per_language": self.tokens_per_language,
            "seed": self.seed,
            "bos": self.bos,
            "languages": [score.to_dict() for score in self.scores.values()],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PerplexityReport":
        """Inverse of `to_dict`; `tokens_per_language`, `seed` and `bos` may be missing, as in older reports."""
        scores = [LanguageScore.from_dict(entry) for entry in values["languages"]]
        model = values["model"]
        return check_types(
            cls(
                {score.language: score for score in scores},
                portable_name(model) if isinstance(model, str) else model,  # older reports hold whole paths
                values["sequence_length"],
                values.get("tokens_per_language"),
                values.get("seed"),
                values.get("bos", cls.bos),
            )
        )

    def to_json(self) -> str:
        """The report as JSON."""
        return tables.to_json(self.to_dict())

    def to_markdown(self) -> str:
        """A table with one row per language; standard errors follow `±` if known.

        The share of unknown tokens is a column if any is unknown.
        """
        has_unknown = any(score.unknown for score in self.scores.values())
        table = markdown_table(
            ["language", "tokens", "nll", "perplexity", "bits per byte", *(["unknown"] if has_unknown else [])],
            [
                [
                    score.language,
                    score.tokens,
                    tables.with_error(score.nll, score.standard_errors["nll"], 4),
                    tables.with_error(score.perplexity, score.standard_errors["perplexity"], 2),
                    tables.with_error(score.bits_per_byte, score.standard_errors["bits_per_byte"], 4),
                    *([as_percent(score.unknown_share)] if has_unknown else []),
                ]
                for score in self.scores.values()
            ],
        )
        return table + tables.without_interval(self.scores)

    __str__ = to_markdown

    def to_pandas(self) -> "pandas.DataFrame":
        """A table with one row per language; standard errors have their own columns."""
        return tables.to_pandas(self._rows())

    def to_dataset(self) -> "Dataset":
        """The same rows as a `datasets.Dataset`."""
        return tables.to_dataset(self._rows())

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {"language": score.language, "tokens": score.tokens, "bytes": score.bytes, **tables.score_row(score)}
            for score in self.scores.values()
        ]


@dataclasses.dataclass(frozen=True)
class PerplexityComparison:
    """What pruning costs per language: pruned models against their dense original, on the same text.

    Attributes:
        dense: Report of the dense model.
        pruned: Name to report of each pruned model, in the order of the columns.
        seen: Languages used for calibration; None if unknown.
        confidence: Probability that an interval covers the true value. It holds for each interval on its own, not for
            a whole table together.

    Raises:
        ValueError: If the reports cover different languages or were measured on different text, or `confidence` does
            not lie between 0 and 1.
    """

    dense: PerplexityReport
    pruned: Mapping[str, PerplexityReport]
    seen: Sequence[str] | None = None
    confidence: float = CONFIDENCE

    def __post_init__(self) -> None:
        check_confidence(self.confidence)
        for name, report in self.pruned.items():
            if report.scores.keys() != self.dense.scores.keys():
                raise ValueError(
                    f"The report of {name!r} covers {', '.join(report.scores)}, that of the dense model "
                    f"{', '.join(self.dense.scores)}: evaluate both on the same dataset."
                )
            for language, score in report.scores.items():
                if not score.is_on_the_text_of(self.dense.scores[language]):
                    raise ValueError(
                        f"The reports of {name!r} and of the dense model are on different text or windows in "
                        f"{language!r}: evaluate both with the same dataset, tokenizer, sequence_length, "
                        "tokens_per_language, seed and bos."
                    )

    @property
    def languages(self) -> tuple[str, ...]:
        """All languages of the reports."""
        return tuple(self.dense.scores)

    @property
    def unseen(self) -> tuple[str, ...]:
        """Languages that were evaluated but not used for calibration."""
        return () if self.seen is None else tuple(name for name in self.languages if name not in self.seen)

    def log_ratio(self, name: str, language: str) -> float:
        """Increase of the log-perplexity over dense, in nats per token."""
        return self.pruned[name].scores[language].nll - self.dense.scores[language].nll

    def bits_per_byte_increase(self, name: str, language: str) -> float:
        """Increase of bits per byte, as a fraction of the dense model's: 0.1 is 10 % more.

        The text is the same, so its bytes cancel: this is known for tokenised datasets too.
        """
        return self.pruned[name].scores[language].nll / self.dense.scores[language].nll - 1

    def mean_log_ratio(self, name: str, languages: Iterable[str] | None = None) -> float | None:
        """Mean increase of the log-perplexity over some languages, by default all; None if there are none."""
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

    def change(self, name: str, against: str | None = None, metric: Metric = "log_perplexity") -> Change:
        """Increases over dense with confidence intervals, per language and over languages.

        Args:
            name: A pruned model.
            against: Another one. The figures are then the increases of `name` minus those of `against`: if an interval
                lies below zero, `name` keeps more.
            metric: `log_perplexity`, in nats per token, or `bits_per_byte`, as a fraction of the dense model's.

        Raises:
            KeyError: If there is no pruned model of that name.
            ValueError: If there is no such metric.
        """
        if metric not in METRICS:
            raise ValueError(f"metric={metric!r} is not allowed: give {' or '.join(METRICS)}.")
        other = None if against is None else self.pruned[against].scores
        pruned = self.pruned[name].scores
        return measure_change(self.dense.scores, pruned, other, self.seen, metric, self.confidence)

    def to_dict(self) -> dict[str, Any]:
        """Reports, summaries and changes as plain JSON values."""
        return {
            "seen": None if self.seen is None else list(self.seen),
            "confidence": self.confidence,
            "dense": self.dense.to_dict(),
            "pruned": {
                name: {
                    **report.to_dict(),
                    "log_perplexity_increase": self.summary(name),
                    "worst_language": self.worst(name),
                    "change": {metric: self.change(name, metric=metric).to_dict() for metric in METRICS},
                }
                for name, report in self.pruned.items()
            },
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PerplexityComparison":
        """Inverse of `to_dict`."""
        pruned = {name: PerplexityReport.from_dict(report) for name, report in values["pruned"].items()}
        dense = PerplexityReport.from_dict(values["dense"])
        return cls(dense, pruned, values["seen"], values.get("confidence", 0.95))

    def to_json(self) -> str:
        """The comparison as JSON."""
        return tables.to_json(self.to_dict())

    def to_markdown(self, metric: Metric = "log_perplexity") -> str:
        """A table per language and over languages, with dense and pruned models side by side.

        For perplexities, means over languages are taken of the logarithms. The rows `worst` and `best` name the
        language that loses most and least, `spread` is the standard deviation over languages. Intervals are in brackets
        if known.

        Args:
            metric: `log_perplexity` shows perplexities and by what factor pruning raises them, `bits_per_byte` shows
                bits per byte and the increase in percent.
        """
        changes = {name: self.change(name, metric=metric) for name in self.pruned}
        reports = {name: report.scores for name, report in self.pruned.items()}
        table = tables.comparison_table(self.dense.scores, reports, changes, self.seen, metric)
        return table + tables.without_interval(self.dense.scores)

    def __str__(self) -> str:
        return self.to_markdown()

    def to_pandas(self) -> "pandas.DataFrame":
        """A table with one row per pruned model and language: both scores, the increases and their intervals."""
        return tables.to_pandas(self._rows())

    def to_dataset(self) -> "Dataset":
        """The same rows as a `datasets.Dataset`."""
        return tables.to_dataset(self._rows())

    def _rows(self) -> list[dict[str, Any]]:
        rows = []
        for name, report in self.pruned.items():
            changes = {metric: self.change(name, metric=metric) for metric in METRICS}
            rows += [
                {
                    "model": name,
                    "language": language,
                    "calibrated": None if self.seen is None else language in self.seen,
                    **tables.score_row(self.dense.scores[language], "dense_"),
                    **tables.score_row(score),
                    **tables.change_row(changes, language),
                }
                for language, score in report.scores.items()
            ]
        return rows
