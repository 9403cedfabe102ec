"""Flags follow the dataclass."""

import argparse
import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from optimum_mwanda.commands.errors import UsageError
from optimum_mwanda.commands.setting_flags import add_settings, flag, read_settings
from optimum_mwanda.configuration import MWandaConfig
from optimum_mwanda.registry import CRITERIA, Criterion


def read(*words: str, settings: type[Any] = MWandaConfig) -> Any:
    parser = argparse.ArgumentParser()
    add_settings(parser, settings)
    return read_settings(parser.parse_args(words), settings)


def test_every_setting_has_a_flag() -> None:
    parser = argparse.ArgumentParser()
    add_settings(parser)
    flags = {string for action in parser._actions for string in action.option_strings}
    assert {flag(field.name) for field in dataclasses.fields(MWandaConfig)} < flags


def test_without_flags_the_defaults_count() -> None:
    assert read() == MWandaConfig()


def test_new_setting_needs_no_edit_here() -> None:
    @dataclasses.dataclass(frozen=True)
    class Later:
        careful: bool = dataclasses.field(default=False, metadata={"help": "100 % careful."})
        rounds: int | None = dataclasses.field(default=None, metadata={"help": "Rounds."})
        names: tuple[str, ...] = dataclasses.field(default=(), metadata={"help": "Names."})
        costs: str | Mapping[str, float] = dataclasses.field(default="none", metadata={"help": "Costs."})
        extra: object = dataclasses.field(default=None, metadata={"help": "Anything."})

        def replace(self, **changes: Any) -> "Later":
            return dataclasses.replace(self, **changes)

    words = ["--careful", "--rounds", "3", "--names", "a", "b", "--costs", "a=1.5", "b=2"]
    later = read(*words, "--extra", '{"x": [1]}', settings=Later)
    assert later == Later(True, 3, ["a", "b"], {"a": 1.5, "b": 2.0}, {"x": [1]})  # type: ignore[arg-type]


def test_flags_override_the_file(tmp_path: Any) -> None:
    path = tmp_path / "settings.json"
    path.write_text('{"sparsity": 0.3, "criterion": "wanda", "languages": ["en", "sw"]}')
    config = read("--config", str(path), "--sparsity", "0.6", "--language-weights", "sw=2")
    assert (config.sparsity, config.criterion, config.languages) == (0.6, "wanda", ("en", "sw"))
    assert config.language_weights == {"sw": 2.0}


def test_number_of_samples_is_one_for_all_or_one_for_each() -> None:
    assert read("--samples-per-language", "64") == MWandaConfig(samples_per_language=64)
    config = read("--samples-per-language", "self=180", "sw=64")
    assert config.samples_per_language == {"self": 180, "sw": 64}
    for words in (["many"], ["1.5"], ["sw=many"], ["=4"], ["64", "sw=8"]):
        with pytest.raises(UsageError, match="give one number, or pairs such as sw=64 yo=16"):
            read("--samples-per-language", *words)
    with pytest.raises(UsageError, match=r"samples_per_language\['sw'\]=0 is not allowed: give a whole number"):
        read("--samples-per-language", "sw=0")


def test_flags_override_the_preset() -> None:
    assert read("--preset", "wanda") == MWandaConfig.preset("wanda")
    config = read("--preset", "owl", "--sparsity", "0.7", "--allocation-strength", "0.1", "--calibration", "dense")
    changes = {"sparsity": 0.7, "allocation_strength": 0.1, "calibration": "dense"}
    assert config == MWandaConfig.preset("owl", **changes)


def test_preset_and_file_are_a_usage_error(tmp_path: Any) -> None:
    MWandaConfig().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="give one of them"):
        read("--preset", "wanda", "--config", str(tmp_path))


def test_pattern_flag_brings_its_own_sparsity(tmp_path: Any) -> None:
    MWandaConfig(sparsity=0.3, seed=5).save_pretrained(tmp_path)
    config = read("--config", str(tmp_path), "--pattern", "2:4")
    assert (config.sparsity, config.allocation, config.seed) == (0.5, "uniform", 5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sparsity", "1"], "give a share"),
        (["--pattern", "4:2"], "0 < N < M"),
        (["--language-weights", "sw=many"], "sw=many"),
        (["--language-weights", "loud"], "'loud' is not known"),
        (["--config", "/nowhere/at/all.json"], "/nowhere/at/all.json: there is no such file"),
        (["--config", "nope.json"], "nope.json: there is no such file"),
        (["--config", "./nope"], "./nope: there is no such file"),
        (["--config", "somebody/pruned"], "somebody/pruned"),
    ],
)
def test_illegal_settings_are_usage_errors(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(*words)


def test_file_with_an_unknown_setting_is_a_usage_error(tmp_path: Any) -> None:
    path = tmp_path / "settings.json"
    path.write_text('{"sparsty": 0.3}')
    with pytest.raises(UsageError, match="Did you mean 'sparsity'"):
        read("--config", str(path))


def test_flags_say_what_each_setting_may_be() -> None:
    parser = argparse.ArgumentParser(formatter_class=lambda prog: argparse.HelpFormatter(prog, width=1000))
    add_settings(parser)
    text = parser.format_help()
    assert "--criterion {magnitude,wanda,ria,mwanda,sparsegpt,alps}" in text
    assert "--allocation {uniform,owl,outliers,cwl,dlp,alpha}" in text
    assert "--base {wanda,ria}" in text
    assert "(default: 0.5; at least 0)" in text
    assert "(default: 0.95; in [0, 1])" in text


def test_a_name_that_is_registered_later_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser()
    add_settings(parser)
    with pytest.raises(UsageError, match=r"criterion='mine' is not known.*--plugin"):
        read_settings(parser.parse_args(["--criterion", "mine"]))
    monkeypatch.setitem(CRITERIA, "mine", Criterion(lambda weight, *_: weight))
    assert read_settings(parser.parse_args(["--criterion", "mine"])).criterion == "mine"


def test_help_shows_every_setting_under_what_it_is_about() -> None:
    parser = argparse.ArgumentParser()
    add_settings(parser)
    groups = {group.title: [action.dest for action in group._group_actions] for group in parser._action_groups}
    assert groups["settings"] == ["config", "preset"]
    found = [name for title, names in groups.items() if title.startswith("settings: ") for name in names]
    assert sorted(found) == sorted(field.name for field in dataclasses.fields(MWandaConfig))
    assert max(map(len, groups.values())) <= 12
