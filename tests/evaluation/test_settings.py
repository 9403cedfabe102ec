"""The settings of an evaluation."""

import inspect
from typing import Any

import pytest

from optimum_mwanda import MWandaConfig, compare, evaluate_languages
from optimum_mwanda.evaluation.settings import EvaluationSettings

from ..conftest import make_model, make_rows


def test_they_follow_a_config_but_for_what_is_changed() -> None:
    config = MWandaConfig(
        language_column="lang", text_column="content", sequence_length=99, batch_size=3, seed=7, bos="none"
    )
    settings = EvaluationSettings.like(config, batch_size=5, tokens_per_language=10)
    assert settings == EvaluationSettings(
        language_column="lang",
        text_column="content",
        sequence_length=99,
        batch_size=5,
        seed=7,
        tokens_per_language=10,
        bos="none",
    )


def test_beginning_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bos='always' is not known\. Choose one of: 'auto', 'none'"):
        EvaluationSettings(bos="always")


def test_one_language_may_be_named_without_a_list() -> None:
    assert EvaluationSettings(languages="sw") == EvaluationSettings(languages=("sw",))


def test_what_is_no_setting_is_refused_by_name() -> None:
    model = make_model()
    unknown: Any = {"batchsize": 1}
    with pytest.raises(TypeError, match="batchsize"):
        evaluate_languages(model, None, make_rows(), progress=False, **unknown)
    with pytest.raises(TypeError, match="batchsize"):
        compare(model, model, None, make_rows(), progress=False, **unknown)


def test_help_of_the_function_describes_every_setting() -> None:
    text = " ".join(str(inspect.getdoc(evaluate_languages)).split())
    assert "sequence_length (`int | None`, defaults to `None`): Tokens per window" in text
    assert "tokens_per_language (`int`, defaults to `16384`)" in text
