"""Made-up results of every size, for pictures and reports."""

import math
import random

import torch

from optimum_mwanda import CalibrationStatistics, LanguageCoverage, PerplexityComparison, PerplexityReport
from optimum_mwanda.calibration.statistics import WeightStatistics
from optimum_mwanda.evaluation.scores import LanguageScore, Windows

TOKENS = 100
"""Of every language in every matrix, unless a test says otherwise."""


def make_languages(count: int) -> list[str]:
    """Codes as long as those of real data sets, sorted."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [f"{letters[i // 26]}{letters[i % 26]}x_Latn" for i in range(count)]


def make_statistics(
    languages: list[str], mean_squares: dict[str, torch.Tensor], tokens: list[int] | None = None
) -> CalibrationStatistics:
    """Statistics with the given `m`, shape `(languages, in)`, for every matrix."""
    counts = torch.tensor([TOKENS] * len(languages) if tokens is None else tokens)
    weights = {
        name: WeightStatistics(counts, values.double() * counts[:, None], {}) for name, values in mean_squares.items()
    }
    coverage = tuple(LanguageCoverage(each, 4, 4 * TOKENS, 4) for each in languages)
    return CalibrationStatistics(weights, coverage, dict.fromkeys(languages, ("digest",)), "model", "fingerprint")


def random_statistics(languages: int, blocks: int) -> CalibrationStatistics:
    generator = torch.Generator().manual_seed(0)
    return make_statistics(
        make_languages(languages),
        {
            f"model.layers.{block}.{matrix}": torch.rand(languages, 16, generator=generator) + 0.1
            for block in range(blocks)
            for matrix in ("self_attn.q_proj", "mlp.down_proj")
        },
    )


def make_score(language: str, nll: float, noise: float, seed: int) -> LanguageScore:
    """A score over 8 windows whose losses scatter around the mean; `seed` is that of the scatter."""
    source = random.Random(f"{language} {seed}")
    losses = [50 * (nll + noise * source.uniform(-1, 1)) for _ in range(8)]
    windows = Windows(tuple(losses), (50,) * 8, (200,) * 8)
    return LanguageScore(language, 400, math.fsum(losses) / 400, 1600, windows)


def make_comparison(
    languages: list[str], pruned: list[str], seen: list[str] | None = None, cost: float = 0.4
) -> PerplexityComparison:
    """Every language and every model loses something else, with confidence intervals."""
    source = random.Random(0)
    dense = {each: make_score(each, source.uniform(2, 4), 0.3, 0) for each in languages}
    reports = {}
    for index, name in enumerate(pruned):
        scores = {
            each: make_score(each, dense[each].nll + cost * (index + source.uniform(0.2, 1)), 0.3, index)
            for each in languages
        }
        reports[name] = PerplexityReport(scores, name, 64)
    return PerplexityComparison(PerplexityReport(dense, "org/model", 64), reports, seen)
