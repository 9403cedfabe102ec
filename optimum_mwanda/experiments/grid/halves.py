"""Splitting documents for tuning."""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset, IterableDataset

from ...configuration import MWandaConfig


def halve_documents(dataset: Any, language_column: str = MWandaConfig.language_column) -> tuple[Any, Any]:
    """Splits the documents of every language in two: the first, third, … for calibration, the rest for evaluation.

    Args:
        dataset: `datasets.Dataset`, or a dict of language to texts or to a dataset.
        language_column: Column that names the language.

    Raises:
        TypeError: If the dataset is neither.
        ValueError: If a language has only one document.
    """
    if isinstance(dataset, Mapping):
        if streams := [language for language, each in dataset.items() if isinstance(each, IterableDataset)]:
            raise TypeError(
                f"The streams of {', '.join(map(repr, streams))} cannot be halved: pass a Dataset per language."
            )
        texts = {
            language: each if isinstance(each, Dataset) else list(each)  # a row of a dataset may be hard to decode
            for language, each in dataset.items()
        }
        _check_counts({language: len(each) for language, each in texts.items()})
        halves = [{language: _every_other(each, part) for language, each in texts.items()} for part in (0, 1)]
        return halves[0], halves[1]
    if not isinstance(dataset, Dataset):
        raise TypeError(f"A {type(dataset).__name__} cannot be halved: pass a datasets.Dataset, or a dict of texts.")
    counts: dict[str, int] = {}
    parts: tuple[list[int], list[int]] = ([], [])
    for index, language in enumerate(dataset[language_column]):
        parts[counts.get(language, 0) % 2].append(index)
        counts[language] = counts.get(language, 0) + 1
    _check_counts(counts)
    return dataset.select(parts[0]), dataset.select(parts[1])


def _every_other(texts: Any, first: int) -> Any:
    return texts.select(range(first, len(texts), 2)) if isinstance(texts, Dataset) else texts[first::2]


def _check_counts(counts: Mapping[str, int]) -> None:
    if single := [language for language, count in counts.items() if count < 2]:
        raise ValueError(
            f"There is only one document in {', '.join(map(repr, single))}, which cannot be halved: give at least two."
        )
