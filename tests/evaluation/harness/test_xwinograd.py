"""Sentences of XWinograd with a blank."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_mwanda.evaluation.harness.xwinograd import with_blank

WORDS = st.text(st.characters(categories=("L", "N")), min_size=1, max_size=5)


def make_row(sentence: str, tokens: list[str], at: tuple[int, int], pronoun: str, right: int = 1) -> list[str]:
    candidates = [[name, [0, 1], [name], right == number] for number, name in enumerate(("Ann", "Eve"), start=1)]
    cells = [tokens, [pronoun, list(at), tokens[slice(*at)]], candidates]
    return ["en", "original", "?", sentence, *map(json.dumps, cells)]


@given(st.lists(st.tuples(WORDS, st.sampled_from(["", " ", "  "])), min_size=1, max_size=8), st.data())
def test_blank_stands_where_the_pronoun_stood(parts: list[tuple[str, str]], data: st.DataObject) -> None:
    """Also where the pronoun's letters occur earlier in the sentence, and where words are not separated."""
    at = data.draw(st.integers(0, len(parts) - 1))
    words = [word for word, _ in parts]
    sentence = "".join(word + gap for word, gap in parts)
    before = "".join(word + gap for word, gap in parts[:at])
    after = sentence[len(before) + len(words[at]) :]
    result = with_blank(make_row(sentence, words, (at, at + 1), words[at]))
    assert result == {"sentence": f"{before}_{after}", "option1": "Ann", "option2": "Eve", "answer": "1"}


def test_tokens_that_were_rewritten_are_passed_over() -> None:
    tokens = ["Ann", "told", "Eve", "``", "Check", "''", "and", "she", "left", "."]
    row = make_row('Ann told Eve "Check" and she left.', tokens, (7, 8), "she", right=2)
    assert with_blank(row)["sentence"] == 'Ann told Eve "Check" and _ left.'
    assert with_blank(row)["answer"] == "2"


def test_pronoun_may_have_several_tokens() -> None:
    tokens = ["Ann", "said", "that", "she", "herself", "left", "."]
    row = make_row("Ann said that she herself left.", tokens, (3, 5), "she herself")
    assert with_blank(row)["sentence"] == "Ann said that _ left."


@pytest.mark.parametrize("right", [0, 3])
def test_row_without_a_right_candidate_is_refused(right: int) -> None:
    with pytest.raises(ValueError, match="exactly one of its two candidates"):
        with_blank(make_row("she left", ["she", "left"], (0, 1), "she", right=right))


def test_pronoun_elsewhere_than_its_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="'she' is not where its tokens are"):
        with_blank(make_row("she left", ["she", "left"], (1, 2), "she"))
