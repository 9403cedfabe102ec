"""Splitting documents for tuning, and telling texts apart."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from ..calibration.rows import Row, feed

LONGEST_TOKEN = 64
"""Bytes of text that surely hold one token, for knowing how much of a text an evaluation can have read."""


def halve_documents(dataset: Any, language_column: str = "language") -> tuple[Any, Any]:
    """Splits the documents of every language in two: the first, third, … to calibrate on, the others to evaluate.

    Args:
        dataset: `datasets.Dataset`, or a dict of language to texts.
        language_column: Column that names the language.

    Raises:
        TypeError: If the dataset is neither.
        ValueError: If a language has a single document.
    """
    if isinstance(dataset, Mapping):
        texts = {language: list(each) for language, each in dataset.items()}
        _check_counts({language: len(each) for language, each in texts.items()})
        halves = [{language: each[part::2] for language, each in texts.items()} for part in (0, 1)]
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


def _check_counts(counts: Mapping[str, int]) -> None:
    if single := [language for language, count in counts.items() if count < 2]:
        raise ValueError(f"There is one document only in {', '.join(map(repr, single))}, which cannot be halved.")


def digest_text(
    dataset: Any,
    tokens_per_language: int,
    seed: int,
    *,
    language_column: str,
    text_column: str,
    target_column: str | None = None,
) -> str:
    """SHA-256 of all that an evaluation can read: the rows in its order, until there is surely enough of a language."""
    rows = _Digest(text_column, target_column, LONGEST_TOKEN * tokens_per_language)
    feed(
        dataset,
        rows,
        language_column=language_column,
        text_column=text_column,
        target_column=target_column,
        seed=seed,
    )
    return hashlib.sha256(
        json.dumps({name: each.hexdigest() for name, each in rows.digests.items()}).encode()
    ).hexdigest()


class _Digest:
    """Takes rows until they are long enough."""

    def __init__(self, text_column: str, target_column: str | None, most_bytes: int) -> None:
        self.text_column = text_column
        self.target_column = target_column
        self.most_bytes = most_bytes
        self.bytes: dict[str, int] = {}
        self.digests: dict[str, Any] = {}

    def add(self, language: str, row: Row) -> None:
        digest = self.digests.setdefault(language, hashlib.sha256())
        data = _encoded(row, "input_ids", self.text_column)
        digest.update(data + b"\0")
        if self.target_column is not None:  # of pairs only targets count
            data = _encoded(row, "labels", self.target_column)
            digest.update(data + b"\0")
        self.bytes[language] = self.bytes.get(language, 0) + len(data)

    def is_full(self, language: str) -> bool:
        return self.bytes.get(language, 0) >= self.most_bytes


def _encoded(row: Row, tokens: str, text: str) -> bytes:
    ids = row.get(tokens)
    return json.dumps(row.get(text) if ids is None else list(ids), ensure_ascii=False, default=str).encode()
