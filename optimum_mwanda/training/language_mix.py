"""Training data in which languages have the shares that they should have."""

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, IterableDataset, concatenate_datasets, interleave_datasets

from ..configuration import MWandaConfig
from ..data.by_language import first_rows, split_by_language
from ..data.columns import Columns
from ..data.running_text import make_chunks
from ..evaluation.report import PerplexityComparison
from ..utils import abridged, as_percent, markdown_table
from ..values import check_number, strings
from .language_weights import need_weights, temperature_weights
from .recovery_settings import STRATEGIES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LanguageMix:
    """A mixed dataset, and what it is made of. `print` shows a table.

    Attributes:
        dataset: The `train_dataset`: a `datasets.Dataset`, or a `datasets.IterableDataset` if streams were given.
        shares: Language to its share of the mix.
        available: Language to how many rows or chunks there are; None for streams, of which nobody knows.
        drawn: Language to how many rows or chunks the mix has of it; None for streams.
    """

    dataset: Dataset | IterableDataset
    shares: dict[str, float]
    available: dict[str, int] | None = None
    drawn: dict[str, int] | None = None

    @property
    def epochs(self) -> dict[str, float] | None:
        """Language to how often one pass through the mix goes through its rows; None for streams."""
        if self.available is None or self.drawn is None:
            return None
        return {language: self.drawn[language] / count for language, count in self.available.items()}

    def __str__(self) -> str:
        if self.available is None or self.drawn is None or self.epochs is None:
            return markdown_table(["language", "share"], [[each, as_percent(s)] for each, s in self.shares.items()])
        return markdown_table(
            ["language", "share", "available", "in the mix", "epochs"],
            [
                [each, as_percent(share), self.available[each], self.drawn[each], f"{self.epochs[each]:.2f}"]
                for each, share in self.shares.items()
            ],
        )


def mix_languages(
    dataset: Any,
    model: "PreTrainedModel | None" = None,
    tokenizer: "PreTrainedTokenizerBase | str | None" = None,
    *,
    strategy: str | Mapping[str, float] = "equal",
    report: PerplexityComparison | None = None,
    temperature: float = MWandaConfig.language_temperature,
    languages: str | Sequence[str] | None = None,
    size: int | None = None,
    sequence_length: int | None = None,
    bos: str = MWandaConfig.bos,
    seed: int = MWandaConfig.seed,
    language_column: str = MWandaConfig.language_column,
    text_column: str = MWandaConfig.text_column,
) -> LanguageMix:
    """Mixes the languages of a dataset for training.

    A dataset with random access is mixed by count: each language has its share to the row, in an order drawn from
    `seed`. If it has fewer rows than its share, each of them comes once before any comes again. Streams are drawn from
    at random with the shares as probabilities, each in its own order, and in turn if all shares are equal. A stream
    that ends begins again, so their mix has no end: give `max_steps` to a `Trainer`.

    The result depends on the arguments only, so a training that is resumed sees what it would have seen.

    Args:
        dataset: `datasets.Dataset` or `datasets.IterableDataset` with a language column, a list of rows, or a dict of
            language to one of these or to texts.
        model: Causal language model that is trained: texts become chunks of `input_ids` and `labels` for it, so shares
            are shares of tokens. None: rows are mixed as they are.
        tokenizer: Tokenizer, its name or path, or None for the model's own.
        strategy: "equal", "temperature" (sizes to the power of 1 / T), "need" (by `need_weights`), or a dict of
            language to weight.
        report: Dense against pruned, for "need".
        temperature: T, for "temperature" and "need".
        languages: Languages to mix; None for all. A stream with a language column needs them.
        size: Rows or chunks of the mix. None: as many as there are in the dataset. Not for streams.
        sequence_length: Tokens per chunk. None: 512, or fewer if the model has fewer positions.
        bos: As in `MWandaConfig`.
        seed: Seed for the order.
        language_column: Column that names the language of a row.
        text_column: Column with the text or the conversation; not needed if there are `input_ids`.

    Raises:
        TypeError: If the dataset cannot be read.
        ValueError: If a setting is not allowed, a column or a language is missing, a language has no rows, a strategy
            lacks what it needs, or texts or ids do not fit the model.
    """
    if not isinstance(strategy, Mapping) and (not isinstance(strategy, str) or strategy not in STRATEGIES):
        raise ValueError(
            f"strategy={strategy!r} is not allowed: give {', '.join(STRATEGIES)}, or a dict of language to weight."
        )
    if size is not None:
        check_number("size", size, lambda n: n >= 1 and n == int(n), "a whole number of at least 1")
    check_number("seed", seed, lambda n: n >= 0 and n == int(n), "a whole number of at least 0")
    columns = Columns(language_column, text_column)
    wanted = None if languages is None else strings("languages", languages)
    parts: dict[str, Any] = split_by_language(dataset, columns, wanted)
    if model is None:
        first_rows(parts)
    else:
        parts = make_chunks(parts, model, tokenizer, sequence_length, bos, columns)
    is_table = all(isinstance(part, Dataset) for part in parts.values())
    available = {language: len(part) for language, part in parts.items()} if is_table else None
    shares = _shares(parts, _weights(strategy, report, temperature, available))
    if available is None:
        if size is not None:
            raise ValueError(f"size={size} is for datasets with random access: streams are mixed without end.")
        return LanguageMix(_interleaved(parts, shares, seed), shares)
    drawn = apportion(shares, sum(available.values()) if size is None else size)
    mix = LanguageMix(_selected(parts, drawn, seed), shares, available, drawn)
    repeated = [f"{each!r} {epochs:.2f} times" for each, epochs in (mix.epochs or {}).items() if epochs > 1]
    if repeated:
        logger.warning("The mix goes through some languages more than once: %s.", abridged(repeated))
    return mix


def apportion(shares: Mapping[str, float], size: int) -> dict[str, int]:
    """Divides a number of rows by shares; those that are left over go to the largest remainders.

    Args:
        shares: Language to share; they add up to 1.
        size: Number of rows.

    Returns:
        Language to number of rows; they add up to `size`.
    """
    exact = {language: share * size for language, share in shares.items()}
    counts = {language: int(rows) for language, rows in exact.items()}
    by_remainder = sorted(exact, key=lambda language: counts[language] - exact[language])
    for language in by_remainder[: size - sum(counts.values())]:
        counts[language] += 1
    return counts


def _weights(
    strategy: str | Mapping[str, float],
    report: PerplexityComparison | None,
    temperature: float,
    available: Mapping[str, int] | None,
) -> Mapping[str, float] | None:
    """Language to weight; None if all weigh the same."""
    if not isinstance(strategy, str):
        return strategy
    if strategy == "need":
        if report is None:
            raise ValueError("strategy='need' looks at what each language lost: give report=, dense against pruned.")
        return need_weights(report, temperature=temperature)
    if strategy == "temperature":
        if available is None:
            raise ValueError(
                "strategy='temperature' looks at how much there is of each language, which nobody knows of a stream: "
                "give strategy=temperature_weights({language: rows or tokens}, temperature)."
            )
        return temperature_weights(available, temperature)
    return None


def _shares(languages: Iterable[str], weights: Mapping[str, float] | None) -> dict[str, float]:
    weights = dict.fromkeys(languages, 1.0) if weights is None else weights
    if missing := [language for language in languages if language not in weights]:
        raise ValueError(
            f"There is no weight for {', '.join(map(repr, missing))}, only for {abridged(map(repr, weights))}: "
            "evaluate or weigh all languages that are mixed, or name those to mix with languages=."
        )
    for language in languages:
        check_number(f"The weight of language {language!r}", weights[language], lambda w: w > 0, "a number above 0")
    total = sum(weights[language] for language in languages)
    return {language: weights[language] / total for language in languages}


def _selected(parts: Mapping[str, Dataset], drawn: Mapping[str, int], seed: int) -> Dataset:
    """The rows that the mix draws of each language, in random order."""
    generator = np.random.default_rng(seed)
    numbers, first = [], 0
    for language, part in parts.items():
        passes = -(-drawn[language] // len(part))
        order = [first + generator.permutation(len(part)) for _ in range(passes)]
        numbers += np.concatenate([*order, []])[: drawn[language]].astype(np.int64).tolist()
        first += len(part)
    return concatenate_datasets([*parts.values()]).select(generator.permutation(numbers))


def _interleaved(parts: Mapping[str, IterableDataset], shares: Mapping[str, float], seed: int) -> IterableDataset:
    # If the mix ended before the training does, a Trainer would not find the place where to go on.
    endless = [part.repeat(None) for part in parts.values()]
    if len({*shares.values()}) == 1:
        return interleave_datasets(endless, stopping_strategy="all_exhausted")
    probabilities = [shares[language] for language in parts]
    return interleave_datasets(endless, probabilities, seed, stopping_strategy="all_exhausted")
