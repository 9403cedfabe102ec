"""Scores of one language and their standard errors."""

import dataclasses
import json
import math

import pytest

from optimum_mwanda.evaluation.scores import LanguageScore, Windows

# With two windows one is drawn: every figure is that of the one or of the other, each half of the time.
TWO = LanguageScore("en", 40, 2.5, 120, Windows((30.0, 70.0), (20, 20), (80, 40)))


def test_standard_errors_of_two_windows_are_half_the_distance_of_their_figures() -> None:
    errors = TWO.standard_errors
    assert errors["nll"] == pytest.approx((3.5 - 1.5) / 2, rel=1e-3)
    assert errors["perplexity"] == pytest.approx((math.exp(3.5) - math.exp(1.5)) / 2, rel=1e-3)
    assert errors["bits_per_byte"] == pytest.approx((70 / 40 - 30 / 80) / 2 / math.log(2), rel=1e-3)


def test_standard_errors_do_not_depend_on_what_was_drawn_before() -> None:
    again = LanguageScore.from_dict(TWO.to_dict())
    _ = LanguageScore("fr", 40, 2.5, 120, TWO.windows).standard_errors
    assert again.standard_errors == TWO.standard_errors


def test_equal_windows_have_no_error() -> None:
    score = LanguageScore("en", 60, 0.7, 90, Windows((14.0,) * 3, (20,) * 3, (30,) * 3))
    assert score.standard_errors == pytest.approx({"nll": 0, "perplexity": 0, "bits_per_byte": 0}, abs=1e-12)


@pytest.mark.parametrize("windows", [None, Windows((30.0,), (20,), (80,))])
def test_a_single_window_says_nothing_about_errors(windows: Windows | None) -> None:
    score = LanguageScore("en", 20, 1.5, 80, windows)
    assert set(score.standard_errors.values()) == {None}


def test_without_bytes_only_bits_per_byte_have_no_error() -> None:
    score = LanguageScore("en", 40, 2.5, None, Windows((30.0, 70.0), (20, 20)))
    assert score.standard_errors["bits_per_byte"] is None
    assert score.standard_errors["nll"] == TWO.standard_errors["nll"]


def test_error_of_an_enormous_perplexity_stays_a_number() -> None:
    score = LanguageScore("en", 40, 5000.0, None, Windows((100_000.0, 100_000.0), (20, 20)))
    assert score.standard_errors["perplexity"] == 0


@pytest.mark.parametrize(
    "score",
    [TWO, dataclasses.replace(TWO, digest="d1"), LanguageScore("en", 40, 2.5, None, Windows((30.0, 70.0), (20, 20)))],
)
def test_score_survives_json(score: LanguageScore) -> None:
    assert LanguageScore.from_dict(json.loads(json.dumps(score.to_dict()))) == score


def test_older_score_without_windows_can_be_read() -> None:
    old = {"language": "en", "tokens": 40, "nll": 2.5, "bytes": 120, "perplexity": 12.2, "bits_per_byte": 1.2}
    score = LanguageScore.from_dict(old)
    assert score == LanguageScore("en", 40, 2.5, 120)
    assert score.is_on_the_text_of(TWO)


def test_equal_lengths_do_not_make_the_text_the_same() -> None:
    one, other = (dataclasses.replace(TWO, digest=digest) for digest in ("d1", "d2"))
    assert not one.is_on_the_text_of(other)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (LanguageScore("en", 40, 9.9, 120, Windows((1.0, 2.0), (20, 20), (80, 40))), True),
        (LanguageScore("en", 40, 9.9, None, Windows((1.0, 2.0), (20, 20))), True),
        (LanguageScore("en", 40, 9.9, 121), False),
        (LanguageScore("en", 41, 9.9, 120), False),
        (LanguageScore("en", 40, 9.9, 120, Windows((1.0, 2.0), (19, 21), (80, 40))), False),
        (LanguageScore("en", 40, 9.9, 120, Windows((1.0, 2.0), (20, 20), (81, 39))), False),
        (dataclasses.replace(TWO, digest="d1"), True),
    ],
)
def test_scores_on_other_text_are_recognised(other: LanguageScore, same: bool) -> None:
    assert TWO.is_on_the_text_of(other) is other.is_on_the_text_of(TWO) is same
