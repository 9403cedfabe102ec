"""What a pruned model loses in each language and overall, with confidence intervals from paired resampling."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from ..utils import markdown_table
from .bootstrap import RESAMPLES, Array, Estimate, estimate
from .scores import LanguageScore

Metric: TypeAlias = Literal["log_perplexity", "bits_per_byte"]
METRICS: tuple[Metric, ...] = get_args(Metric)

Scores: TypeAlias = Mapping[str, LanguageScore]


@dataclasses.dataclass(frozen=True)
class Change:
    """Increases over the dense model, or how much more one pruned model increases than another.

    Attributes:
        metric: `log_perplexity`, in nats per token, or `bits_per_byte`, as a fraction of the dense model's.
        languages: Estimate for each language.
        summary: Over languages: `mean`; `seen` and `unseen`, the means over calibrated and other languages, and `gap`,
            `unseen` minus `seen`; `worst` and `best`, the largest and smallest increase, and `range`, their
            difference; `deviation`, the standard deviation. An entry over no language, or one that would compare a
            single language with itself, is missing.
    """

    metric: Metric
    languages: dict[str, Estimate]
    summary: dict[str, Estimate]

    def to_dict(self) -> dict[str, Any]:
        """The estimates as plain JSON values."""
        parts = {"languages": self.languages, "summary": self.summary}
        return {part: {key: each._asdict() for key, each in rows.items()} for part, rows in parts.items()}

    def to_markdown(self) -> str:
        """A table of all estimates, with whether each interval lies above, below or around zero."""
        rows = {**self.languages, **{f"**{key}**": each for key, each in self.summary.items()}}
        return markdown_table(
            [self.metric.replace("_", " "), "change", "low", "high", "interval"],
            [[name, *("" if x is None else f"{x:+.4f}" for x in row), _side(row)] for name, row in rows.items()],
        )

    __str__ = to_markdown


def measure_change(
    dense: Scores,
    pruned: Scores,
    against: Scores | None,
    seen: Collection[str] | None,
    metric: Metric,
    confidence: float,
) -> Change:
    """Compares a pruned model with the dense one, or its increases with those of another pruned model.

    The models are paired: every resample takes the same windows for all of them, and what they have in common cancels.
    Windows are resampled within each language, but languages are not drawn: the figures are about these languages.

    Args:
        dense: Scores of the dense model.
        pruned: Scores of the pruned model, on the same windows.
        against: Scores of the other pruned model; None to compare with the dense one.
        seen: Languages used for calibration; None if unknown.
        metric: What to compare.
        confidence: Probability that an interval covers the true value.
    """
    languages = list(dense)
    models = [pruned] if against is None else [pruned, against]
    values = np.array([[_increase(metric, dense[name], model[name]) for name in languages] for model in models])
    resampled = np.stack([_resampled(metric, dense[name], [model[name] for model in models]) for name in languages], 1)
    weights = [summary_weights(row, None if seen is None else [name in seen for name in languages]) for row in values]

    def combine(*columns: Array) -> Estimate:
        """The sum over languages, with the given weights for each model."""
        value, drawn = 0.0, np.zeros(RESAMPLES)
        for sign, weight, figures, samples in zip((1, -1), columns, values, resampled, strict=False):
            used = weight != 0  # a language without windows must not spoil a sum that leaves it out
            value += sign * float(weight[used] @ figures[used])
            drawn += sign * (weight[used] @ samples[used])
        return estimate(value, drawn, confidence)

    each = np.eye(len(languages))
    return Change(
        metric,
        {name: combine(*[each[index]] * len(models)) for index, name in enumerate(languages)},
        {key: combine(*(row[key] for row in weights)) for key in weights[0]},
    )


def summary_weights(increases: Array, seen: Sequence[bool] | None) -> dict[str, Array]:
    """The weights of languages in each summary: a summary is the sum of weight times increase.

    Means are such sums. So are the others once the choice is made: the worst language has weight 1, and in the
    standard deviation of x over L languages, language l has weight (x_l - mean) / (L · deviation). The weights stay
    the same in every resample. Choosing anew each time would shift the intervals of the worst and of the spread away
    from their values, because noise alone pushes up the largest of many figures.

    Args:
        increases: Increase of each language, (languages,).
        seen: Whether each was used for calibration; None if unknown.

    Returns:
        Name of the summary to weights, (languages,), without the summaries that `Change.summary` leaves out.
    """
    count = len(increases)
    each = np.eye(count)
    centred = increases - increases.mean()
    centred -= centred.mean()  # the rest from rounding, which matters if all languages are alike
    norm = count * np.sqrt(np.mean(centred**2))
    worst, best = each[np.argmax(increases)], each[np.argmin(increases)]
    weights = {"mean": np.full(count, 1 / count)}
    if seen is not None:
        inside = np.array(seen, dtype=np.float64)
        groups = {"seen": inside, "unseen": 1 - inside}
        weights |= {key: group / group.sum() for key, group in groups.items() if group.any()}
    if {"seen", "unseen"} <= weights.keys():
        weights["gap"] = weights["unseen"] - weights["seen"]
    weights["worst"] = worst
    if count > 1:
        weights |= {"best": best, "range": worst - best}
        weights["deviation"] = centred / norm if norm != 0 else np.zeros(count)
    return weights


def _increase(metric: Metric, dense: LanguageScore, pruned: LanguageScore) -> float:
    # The text is the same, so its bytes cancel in the ratio of bits per byte.
    return pruned.nll - dense.nll if metric == "log_perplexity" else pruned.nll / dense.nll - 1


def _resampled(metric: Metric, dense: LanguageScore, pruned: Sequence[LanguageScore]) -> Array:
    """Increases over resampled windows, (models, resamples); NaN without windows to resample."""
    windows = [score.windows for score in pruned if score.windows is not None]
    if dense.windows is None or not dense.can_be_resampled or len(windows) < len(pruned):
        return np.full((len(pruned), RESAMPLES), np.nan)
    tokens, before, *after = dense.resample(dense.windows.tokens, dense.windows.nll, *(each.nll for each in windows))
    changed = np.stack(after)
    increases: Array = (changed - before) / tokens if metric == "log_perplexity" else changed / before - 1
    return increases


def _side(row: Estimate) -> str:
    if row.low is None or row.high is None:
        return "unknown"
    return "above 0" if row.low > 0 else "below 0" if row.high < 0 else "around 0"
