"""The command line in a card, read by the parser of the command itself."""

import functools
import shlex
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimum_mwanda.commands.parser import OneLineParser
from optimum_mwanda.commands.prune import PruneCommand
from optimum_mwanda.commands.setting_flags import read_settings
from optimum_mwanda.configuration import MWandaConfig
from optimum_mwanda.sharing.model_card import create_card

from ..conftest import CHOICES, UPDATING, WEIGHTINGS
from .test_card import make_record

WORDS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=6)
SHARES = st.floats(0, 5, exclude_min=True)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    **{name: st.sampled_from(allowed) for name, allowed in CHOICES.items()},
    **dict.fromkeys(
        ("ria_exponent", "variance_weight", "activation_threshold", "activation_exponent", "damping"), SHARES
    ),
    **dict.fromkeys(("allocation_strength", "owl_multiplier", "language_temperature", "refinement_ridge"), SHARES),
    "reconstruction_learning_rate": SHARES,
    "reconstruction_held_out": st.floats(0, 0.9),
    "calibration_tolerance": st.floats(0, 0.9),
    "tune_regularisation": st.booleans(),
    "minimax_bound": SHARES,
    "minimax_rounds": st.integers(1, 99),
    **dict.fromkeys(
        (
            "samples_per_language",
            "sequence_length",
            "batch_size",
            "min_expert_tokens",
            "reservoir",
            "reconstruction_blocks",
            "reconstruction_epochs",
            "reconstruction_batch_size",
        ),
        st.integers(1, 2**40),
    ),
    **dict.fromkeys(("language_column", "text_column", "target_column"), WORDS),
    **dict.fromkeys(("languages", "include", "exclude", "blocks"), st.lists(WORDS, min_size=1, max_size=3)),
    "sparsity": st.floats(0.1, 0.9),
    "min_block_sparsity": st.floats(0, 0.1),
    "max_block_sparsity": st.floats(0.9, 1),
    "language_weights": st.sampled_from(WEIGHTINGS) | st.dictionaries(WORDS, SHARES, min_size=1, max_size=3),
    **dict.fromkeys(("refinement_shrinkage", "reconstruction_shrinkage"), st.floats(0, 1)),
    "sensitivity_exponent": SHARES,
    "refinement_reach": st.floats(0.1, 9),
    "seed": st.integers(0, 2**64 - 1),
}


def command_of(config: MWandaConfig, languages: dict[str, Any]) -> list[str]:
    record = make_record() | {"settings": config.to_dict(), "pattern": config.pattern, "languages": languages}
    (line,) = (line for line in create_card(record).text.splitlines() if line.startswith("optimum-cli"))
    return shlex.split(line)


@functools.cache
def parser() -> OneLineParser:
    made = OneLineParser()
    PruneCommand.parse_args(made)
    return made


def parsed(words: list[str], tmp_path: Any, config: MWandaConfig) -> MWandaConfig:
    """The settings as `prune` reads them, beside the file that a checkpoint has."""
    config.save_pretrained(tmp_path)
    assert words[:3] == ["optimum-cli", "mwanda", "prune"]
    words = [str(tmp_path / word) if word == "mwanda_config.json" else word for word in words[3:]]
    result = read_settings(parser().parse_args(words))
    assert isinstance(result, MWandaConfig)
    return result


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.fixed_dictionaries({}, optional=VALUES))
def test_command_gives_the_settings_of_the_record(tmp_path_factory: Any, values: dict[str, Any]) -> None:
    if values.get("criterion") in UPDATING:  # which leaves nothing to refine, and no choice of reconstruction
        values |= {"refinement": "none", "reconstruction": "obs"}
    if values.get("refinement") in ("block", "swap+block"):
        values |= {"reconstruction": "block"}
    if values.get("reconstruction") in ("block", "obs+block"):
        values.pop("calibration", None)
    if values.get("reconstruction_region") == "part":
        values.pop("reconstruction_blocks", None)
    couples = values.get("refinement") in ("swap", "swap+block") or values.get("group") == "matrix"
    if not couples or values.get("language_weights") == "minimax" or values.get("tune_regularisation"):
        values.pop("sensitivity", None)
    if isinstance(values.get("language_weights"), str) or values.get("tune_regularisation"):
        values.pop("calibration_tolerance", None)
    config = MWandaConfig(**values)
    assert parsed(command_of(config, {}), tmp_path_factory.getbasetemp(), config) == config


def test_every_setting_is_tried() -> None:
    assert VALUES.keys() | {"pattern"} == MWandaConfig().to_dict().keys()


@pytest.mark.parametrize("pattern", ["2:4", "1:3", "4:8"])
def test_pattern_is_given_with_its_sparsity(tmp_path: Any, pattern: str) -> None:
    config = MWandaConfig(pattern=pattern)
    assert parsed(command_of(config, {}), tmp_path, config) == config


def test_command_names_what_differs_from_the_defaults_and_the_main_settings() -> None:
    config = MWandaConfig(sequence_length=128, language_weights={"sw": 2.0, "yo": 1.5}, exclude=["*.q_proj", "a b"])
    assert command_of(config, {"en": {"tokens": 1, "weight": 1.0}})[5:] == [
        *("--dataset", "calibration.jsonl", "--sparsity", "0.5", "--criterion", "mwanda"),
        *("--pattern", "unstructured", "--allocation", "outliers", "--language-weights", "sw=2.0", "yo=1.5"),
        *("--sequence-length", "128", "--exclude", "*.q_proj", "a b", "--languages", "en", "--seed", "0"),
    ]


@pytest.mark.parametrize(
    "values",
    [
        {"exclude": ["a", "-b"]},
        {"text_column": "two\nlines"},
        {"language_weights": {"": 2.0}},
        {"languages": [" en"]},
        {"include": ["x" * 400]},
    ],
)
def test_what_no_flag_can_say_comes_from_the_file(tmp_path: Any, values: dict[str, Any]) -> None:
    config = MWandaConfig(**values)
    words = command_of(config, {})
    assert words[5:7] == ["--config", "mwanda_config.json"]
    assert parsed(words, tmp_path, config) == config


def test_word_that_looks_like_a_flag_is_joined_to_its_own(tmp_path: Any) -> None:
    config = MWandaConfig(text_column="--seed", exclude=["-x"])
    words = command_of(config, {})
    assert {"--text-column=--seed", "--exclude=-x"} <= set(words)
    assert "--config" not in words
    assert parsed(words, tmp_path, config) == config
