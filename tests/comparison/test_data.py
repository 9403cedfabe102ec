"""Halving documents, and telling texts apart."""

import pytest
from datasets import Dataset

from optimum_mwanda.comparison.data import digest_text, halve_documents

TEXTS = {"en": ["one", "two", "three"], "fr": ["un", "deux"]}
ROWS = [{"language": "en", "text": "one"}, {"language": "fr", "text": "un"}, {"language": "en", "text": "two"}]
ROWS += [{"language": "fr", "text": "deux"}, {"language": "en", "text": "three"}]


def digest(dataset: object, tokens: int = 100, **columns: str) -> str:
    return digest_text(dataset, tokens, 0, language_column="language", text_column="text", **columns)


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


def test_digest_is_that_of_the_text() -> None:
    assert digest(TEXTS) == digest(Dataset.from_list(ROWS)) == digest(ROWS)
    assert digest(TEXTS) != digest({**TEXTS, "fr": ["un", "trois"]})
    assert digest(TEXTS) != digest({"en": TEXTS["en"], "de": TEXTS["fr"]})
    ids = [{"language": "en", "input_ids": [1, 2]}]
    assert digest(ids) == digest(Dataset.from_list(ids)) != digest([{"language": "en", "input_ids": [1, 3]}])


def test_digest_of_pairs_is_that_of_both_sides() -> None:
    texts = {"sw": [{"text": "moja", "summary": "un"}]}
    known = digest(texts, target_column="summary")
    assert known == digest({"sw": [{**texts["sw"][0], "target": "deux"}]}, target_column="summary")
    for side in ("text", "summary"):
        assert known != digest({"sw": [{**texts["sw"][0], side: "deux"}]}, target_column="summary")
    ids = {"language": "sw", "input_ids": [1, 2], "labels": [3]}
    assert digest([ids], target_column="summary") != digest([{**ids, "labels": [4]}], target_column="summary")


def test_no_more_is_read_than_an_evaluation_can_read() -> None:
    long = ["x" * 64 * 100, "y"]
    assert digest({"en": [long[0]] * 2}, tokens=100) == digest({"en": [long[0]] * 3}, tokens=100)
