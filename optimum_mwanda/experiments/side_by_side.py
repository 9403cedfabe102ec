"""Evaluating and comparing models in one call."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from ..evaluation.bootstrap import check_confidence
from ..evaluation.perplexity import measure_languages
from ..evaluation.report import PerplexityComparison, PerplexityReport
from ..evaluation.settings import CONFIDENCE, EvaluationSettings
from ..record.schema import RECORD_KEY, SparsityRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Measurable: TypeAlias = "PreTrainedModel | PerplexityReport"


def compare(
    dense: Measurable,
    pruned: "Measurable | Mapping[str, Measurable]",
    tokenizer: "PreTrainedTokenizerBase | str | None" = None,
    dataset: Any = None,
    *,
    seen: Sequence[str] | None = None,
    confidence: float = CONFIDENCE,
    reference: PerplexityReport | None = None,
    progress: bool = True,
    **settings: Any,
) -> PerplexityComparison:
    """Measures what pruning cost in every language, with paired confidence intervals.

    Args:
        dense: The dense model, or its report: one evaluation of it serves any number of comparisons.
        pruned: A pruned model or its report, or a dict of name to model or report, to see them side by side. A single
            one gets the name `pruned`.
        tokenizer: As for `evaluate_languages`.
        dataset: As for `evaluate_languages`; not needed if all are reports.
        seen: Languages used for calibration. None: what the records of the pruned models say, if they agree.
        confidence: Probability that an interval covers the true value.
        reference: As for `evaluate_languages`. None: the first report.
        progress: As for `evaluate_languages`.
        **settings: As for `evaluate_languages`, the same for all models. `languages`, `sequence_length`,
            `tokens_per_language`, `seed` and `bos` default to those of the first report; `languages` also restricts
            reports.

    Returns:
        The comparison; `to_markdown()` shows it, `change(name, against=other)` compares two pruned models.

    Raises:
        TypeError: If something is neither a model nor a report.
        ValueError: If a model is given without a dataset, its record cannot be read (not needed with `seen`), reports
            are on different text, or as `evaluate_languages`.
    """
    check_confidence(confidence)
    named = dict(pruned) if isinstance(pruned, Mapping) else {"pruned": pruned}
    for name, subject in [("dense", dense), *named.items()]:
        if not isinstance(subject, PerplexityReport):
            _check_model(name, subject, dataset)
    reports = [each for each in (dense, *named.values()) if isinstance(each, PerplexityReport)]
    if (languages := settings.get("languages")) is not None:
        reports = [each.select(languages) for each in reports]  # fails here if one lacks a language, before the work
    first = reports[0] if reports else None
    resolved = EvaluationSettings(**{**({} if first is None else first.evaluation), **settings})

    def report(subject: Any) -> PerplexityReport:
        if isinstance(subject, PerplexityReport):
            return subject if languages is None else subject.select(languages)
        return measure_languages(subject, tokenizer, dataset, resolved, reference or first, progress)

    seen = _calibrated(named.values()) if seen is None else seen
    return PerplexityComparison(report(dense), {name: report(each) for name, each in named.items()}, seen, confidence)


def _check_model(name: str, subject: Any, dataset: Any) -> None:
    if not hasattr(subject, "get_input_embeddings"):
        raise TypeError(f"{name!r} is a {type(subject).__name__}: give a model or a PerplexityReport.")
    if dataset is None:
        raise ValueError(f"{name!r} is a model, but there is no text to evaluate it on: pass dataset=.")


def _calibrated(models: Any) -> list[str] | None:
    """The languages in the records of the models, if all that have a record agree."""
    records = [getattr(getattr(model, "config", None), RECORD_KEY, None) for model in models]
    found = {tuple(SparsityRecord.parse(record).languages) for record in records if record is not None}
    return list(found.pop()) or None if len(found) == 1 else None
