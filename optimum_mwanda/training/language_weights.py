"""How much each language should weigh in training."""

from collections.abc import Mapping
from typing import Any

from ..configuration import MWandaConfig
from ..evaluation.report import PerplexityComparison
from ..utils import abridged
from ..values import check_number

LEAST_LOSS = 0.1
"""By need, a language counts as if it had lost at least this share of what the worst one lost."""


def temperature_weights(
    sizes: Mapping[str, float], temperature: float = MWandaConfig.language_temperature
) -> dict[str, float]:
    """Weights by the size of a language's data: n ** (1 / T), scaled to a mean of 1.

    Args:
        sizes: Language to how much there is of it, in rows or tokens for example.
        temperature: T. 1 leaves languages as frequent as they are; the higher it is, the more equal they become.

    Raises:
        ValueError: If a size is not above 0, or the temperature is not.
    """
    for language, size in sizes.items():
        check_number(f"The size of language {language!r}", size, lambda n: n > 0, "a number above 0")
    return _scaled(sizes, temperature)


def need_weights(
    report: PerplexityComparison, name: str | None = None, temperature: float = MWandaConfig.language_temperature
) -> dict[str, float]:
    """Weights by what pruning cost a language: the worst weighs most.

    They are the increases of the log-perplexity to the power of 1 / T, scaled to a mean of 1. A language that lost less
    than a tenth of what the worst one lost, or nothing, counts as if it had lost that tenth, so that no language is
    left out and forgotten. All weigh the same if none lost anything.

    Args:
        report: Dense against pruned, as `evaluate_languages` and `compare` give it.
        name: The pruned model that is trained; may be left out if the report has one only.
        temperature: T. With 1, weights are proportional to what was lost; the higher it is, the more equal they become.

    Raises:
        TypeError: If the report is none.
        ValueError: If the report has several pruned models and none is named, or has no such model, or the temperature
            is not above 0.
    """
    check_report(report)
    if name is None and len(report.pruned) == 1:
        (name,) = report.pruned
    if name is None or name not in report.pruned:
        given = "more than one pruned model" if name is None else f"no pruned model {name!r}"
        raise ValueError(
            f"The report has {given}: name one, need_weights(report, name). It has "
            f"{abridged(map(repr, report.pruned)) or 'none'}."
        )
    increases = {language: report.log_ratio(name, language) for language in report.languages}
    worst = max(increases.values())
    if worst <= 0:
        return dict.fromkeys(increases, 1.0)
    return _scaled({each: max(lost, LEAST_LOSS * worst) for each, lost in increases.items()}, temperature)


def check_report(report: Any) -> None:
    """Checks that a report compares models.

    Raises:
        TypeError: If it does not.
    """
    if not isinstance(report, PerplexityComparison):
        raise TypeError(
            f"report is a {type(report).__name__}: give PerplexityComparison(dense, {{'pruned': pruned}}) of two "
            "reports that evaluate_languages returned."
        )


def _scaled(sizes: Mapping[str, float], temperature: float) -> dict[str, float]:
    check_number("temperature", temperature, lambda t: t > 0, "a number above 0")
    largest = max(sizes.values())  # so that no power of it is too large
    powers = {language: (size / largest) ** (1 / temperature) for language, size in sizes.items()}
    mean = sum(powers.values()) / len(powers)
    return {language: power / mean for language, power in powers.items()}
