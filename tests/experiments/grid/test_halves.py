"""Halving documents."""

import pytest
from datasets import Dataset

from optimum_mwanda.experiments.grid.halves import halve_documents

TEXTS = {"en": ["one", "two", "three"], "fr": ["un", "deux"]}
ROWS = [{"language": "en", "text": "one"}, {"language": "fr", "text": "un"}, {"language": "en", "text": "two"}]
ROWS += [{"language": "fr", "text": "deux"}, {"language": "en", "text": "three"}]


def test_documents_of_every_language_are_halved_whatever_holds_them() -> None:
    first, second = {"en": ["one", "three"], "fr": ["un"]}, {"en": ["two"], "fr": ["deux"]}
    assert halve_documents(TEXTS) == (first, second)
    for half, expected in zip(halve_documents(Dataset.from_list(ROWS)), (first, second), strict=True):
        found: dict[str, list[str]] = {}
        for row in half:
            found.setdefault(row["language"], []).append(row["text"])
        assert found == expected


def test_single_document_cannot_be_halved() -> None:
    with pytest.raises(ValueError, match="'sw'"):
        halve_documents({**TEXTS, "sw": ["moja"]})
    with pytest.raises(TypeError, match="list"):
        halve_documents(ROWS)
