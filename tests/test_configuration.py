import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimum_mwanda import MWandaConfig
from optimum_mwanda.config_file import CONFIG_NAME
from optimum_mwanda.registry import CRITERIA
from tests.conftest import CHOICES, UPDATING, WEIGHTINGS

CODES = st.sampled_from(["en", "zh-Hant", "eng_Latn", "sw", "język"])
POSITIVE = st.floats(0, 1e6, exclude_min=True)
NOT_NEGATIVE = st.floats(0, 1e6) | st.integers(0, 100)
COUNTS = st.integers(1, 2**40)
PATTERNS = st.lists(st.sampled_from(["*.q_proj", "model.layers.[01].*", "*"]), max_size=3)

LEGAL = {
    **{name: st.sampled_from(allowed) for name, allowed in CHOICES.items() if name != "allocation"},
    "ria_exponent": NOT_NEGATIVE,
    "variance_weight": NOT_NEGATIVE,
    "activation_threshold": NOT_NEGATIVE,
    "activation_exponent": NOT_NEGATIVE,
    "allocation_strength": NOT_NEGATIVE,
    "owl_multiplier": POSITIVE,
    "language_temperature": POSITIVE,
    "language_column": st.text(min_size=1),
    "text_column": st.text(min_size=1),
    "languages": st.none() | st.lists(CODES, min_size=1, unique=True),
    "language_weights": st.sampled_from(WEIGHTINGS) | st.dictionaries(CODES, NOT_NEGATIVE, min_size=1),
    "samples_per_language": COUNTS | st.dictionaries(CODES, COUNTS, min_size=1),
    "calibration_tolerance": st.none() | st.floats(0, 1, exclude_max=True),
    "sequence_length": st.none() | COUNTS,
    "reservoir": st.none() | COUNTS,
    "batch_size": COUNTS,
    "include": st.none() | PATTERNS.filter(bool),
    "exclude": PATTERNS,
    "target_column": st.text(min_size=1),
    "blocks": st.none() | st.just(["model.layers"]) | st.just(["encoder.block", "decoder.block"]),
    "min_expert_tokens": COUNTS,
    "damping": st.none() | NOT_NEGATIVE,
    "refinement_shrinkage": st.floats(0, 1),
    "reconstruction_shrinkage": st.floats(0, 1),
    "refinement_ridge": NOT_NEGATIVE,
    "sensitivity_exponent": NOT_NEGATIVE,
    "tune_regularisation": st.booleans(),
    "minimax_rounds": COUNTS,
    "minimax_bound": NOT_NEGATIVE,
    "reconstruction_blocks": COUNTS,
    "reconstruction_epochs": COUNTS,
    "reconstruction_batch_size": COUNTS,
    "reconstruction_learning_rate": POSITIVE,
    "refinement_reach": POSITIVE,
    "reconstruction_held_out": st.floats(0, 1, exclude_max=True),
    "seed": st.integers(0, 2**63),
}


TRAINING = ("block", "obs+block")
CHOOSING = ("block", "swap+block")


@st.composite
def legal_settings(draw: st.DrawFn) -> dict[str, Any]:
    chosen = draw(st.fixed_dictionaries({}, optional=LEGAL))
    if chosen.get("criterion") in UPDATING:
        chosen |= {"refinement": "none", "reconstruction": draw(st.none() | st.sampled_from(("obs", *TRAINING)))}
    if chosen.get("refinement") in CHOOSING:
        chosen |= {"reconstruction": draw(st.none() | st.sampled_from(("none", "block")))}
    if chosen.get("reconstruction") in TRAINING or chosen.get("refinement") in CHOOSING:
        chosen |= {"calibration": draw(st.none() | st.just("sequential"))}
    if chosen.get("reconstruction_region") == "part":
        chosen.pop("reconstruction_blocks", None)
    swaps = chosen.get("refinement") in ("swap", "swap+block")
    tries = chosen.get("language_weights") == "minimax" or chosen.get("tune_regularisation")
    if tries or (not swaps and chosen.get("group") != "matrix"):
        chosen.pop("sensitivity", None)
    if tries or isinstance(chosen.get("language_weights"), str):
        chosen.pop("calibration_tolerance", None)
    if draw(st.booleans()):
        if not swaps:
            chosen.pop("sensitivity", None)
        kept, run = sorted(draw(st.lists(st.integers(1, 64), min_size=2, max_size=2, unique=True)))
        return chosen | {"pattern": f"{kept}:{run}"}
    low = draw(st.floats(0, 0.99))
    sparsity = draw(st.floats(low, 0.99))
    return chosen | {
        "sparsity": sparsity,
        "min_block_sparsity": low,
        "max_block_sparsity": draw(st.floats(sparsity, 1)),
        "allocation": draw(st.none() | st.sampled_from(CHOICES["allocation"])),
    }


@settings(deadline=None)
@given(legal_settings())
def test_json_round_trip_keeps_every_setting(chosen: dict[str, Any]) -> None:
    config = MWandaConfig(**chosen)
    assert MWandaConfig.from_dict(json.loads(config.to_json_string())) == config
    for name, value in chosen.items():
        assert value is None or getattr(config, name) == (
            tuple(dict.fromkeys(value)) if isinstance(value, list) else value
        )


def test_every_setting_is_documented() -> None:
    for field in dataclasses.fields(MWandaConfig):
        assert f"{field.name} (`" in (MWandaConfig.__doc__ or "")
        assert field.metadata["help"].endswith((".", ".)"))


@pytest.mark.parametrize(
    ("pattern", "sparsity"), [("2:4", 0.5), ("1:4", 0.75), ("3:4", 0.25), ("4:8", 0.5), ("1:3", 2 / 3)]
)
def test_n_of_m_pattern_implies_sparsity_and_uniform_allocation(pattern: str, sparsity: float) -> None:
    config = MWandaConfig(pattern=pattern)
    assert config.sparsity == config.target_sparsity == pytest.approx(sparsity)
    assert config.allocation == "uniform"
    assert config.kept_of == tuple(map(int, pattern.split(":")))
    assert MWandaConfig(pattern=pattern, sparsity=sparsity, allocation="uniform").kept_of == config.kept_of


def test_unstructured_pattern_keeps_no_fixed_number_and_allocates_by_layer() -> None:
    assert MWandaConfig().kept_of is None
    assert MWandaConfig().sparsity == 0.5
    assert MWandaConfig().allocation != "uniform"


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "1:3", "5:7"])
def test_sparsity_that_a_contradiction_suggests_is_accepted(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"sparsity=0\.1 contradicts pattern") as raised:
        MWandaConfig(pattern=pattern, sparsity=0.1)
    suggested = str(raised.value).rpartition("give ")[2].rstrip(".")
    assert MWandaConfig(pattern=pattern, sparsity=float(suggested)).sparsity == pytest.approx(
        MWandaConfig(pattern=pattern).sparsity
    )


@pytest.mark.parametrize("allocation", ["owl", "cwl"])
def test_layerwise_allocation_contradicts_an_n_of_m_pattern(allocation: str) -> None:
    with pytest.raises(ValueError, match=f"allocation='{allocation}' cannot be combined with pattern='2:4'"):
        MWandaConfig(pattern="2:4", allocation=allocation)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("value", ["nope", 1, "", ["wanda"]])
def test_unknown_choice_names_the_setting_and_every_legal_value(name: str, value: Any) -> None:
    with pytest.raises(ValueError) as raised:
        MWandaConfig(**{name: value})
    assert f"{name}={value!r}" in str(raised.value)
    assert all(repr(allowed) in str(raised.value) for allowed in CHOICES[name])


NAN, INFINITY = float("nan"), float("inf")
EXPONENTS_AND_WEIGHTS = [name for name, legal in LEGAL.items() if legal is NOT_NEGATIVE]
ILLEGAL: list[tuple[str, list[Any], str]] = [
    ("sparsity", [1, 1.0, -0.1, 50, NAN, "0.5", True, [0.5]], r"in \[0, 1\)"),
    ("pattern", ["2-4", "4:2", "4:4", "0:4", "2:4:8", "", 24, None], "'N:M' with 0 < N < M"),
    *((name, [-0.1, NAN, INFINITY, "1", None, True], "not negative") for name in EXPONENTS_AND_WEIGHTS),
    *((name, [0, -1, INFINITY, "1", None], "above 0") for name in ("owl_multiplier", "language_temperature")),
    *((name, [0, -1, 1.5, 2.0, "8", None, True], "at least 1") for name in ("samples_per_language", "batch_size")),
    *((name, [0, -1, 1.5, "8", True], "at least 1") for name in ("sequence_length", "reservoir")),
    ("samples_per_language", [{}, {1: 4}, {"sw": 0}, {"sw": 1.5}, {"en": 4, "sw": "8"}], "whole number of at least 1"),
    ("seed", [-1, 0.5, "0", None], "at least 0"),
    *((name, [-0.1, 1.1, NAN, None], r"\[0, 1\]") for name in ("min_block_sparsity", "max_block_sparsity")),
    *((f"{name}_shrinkage", [-0.1, 1.1, NAN, None], r"\[0, 1\]") for name in ("refinement", "reconstruction")),
    ("tune_regularisation", [0, 1, "yes", None], "True or False"),
    ("damping", [-0.1, NAN, INFINITY, "1", True], "not negative"),
    ("min_expert_tokens", [0, -1, 1.5, None], "at least 1"),
    ("languages", [[], [1], ["en", None], 5], "strings"),
    ("include", [[], [1], 5], "strings"),
    ("exclude", [[1], 5], "strings"),
    ("language_weights", ["fair", {}, None, 1, ["en"]], "dict of language to weight"),
    ("language_weights", [{"en": -1}, {"en": NAN}, {"en": "1"}, {1: 1.0}], "not negative"),
    ("language_column", [None, 5], "string"),
    ("text_column", [None, 5], "string"),
    ("target_column", [None, 5], "string"),
    ("blocks", [5, [5], []], "string"),
]


@pytest.mark.parametrize(
    ("name", "value", "allowed"), [(name, value, allowed) for name, values, allowed in ILLEGAL for value in values]
)
def test_illegal_value_names_the_setting_and_what_is_allowed(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=allowed) as raised:
        MWandaConfig(**{name: value})
    assert str(raised.value).startswith(name)


@pytest.mark.parametrize(
    "chosen", [{"sparsity": 0.96}, {"min_block_sparsity": 0.6}, {"max_block_sparsity": 0.4, "allocation": "cwl"}]
)
def test_sparsity_outside_the_block_bounds_is_illegal_unless_uniform(chosen: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"cannot be reached.*min_block_sparsity and max_block_sparsity"):
        MWandaConfig(**chosen)
    assert MWandaConfig(**(chosen | {"allocation": "uniform"})).allocation == "uniform"


def test_language_that_is_named_twice_counts_once() -> None:
    assert MWandaConfig(languages=["en", "sw", "en"]).languages == ("en", "sw")


@pytest.mark.parametrize("name", ["languages", "include", "exclude"])
def test_single_string_stands_for_a_list_of_one(name: str) -> None:
    assert getattr(MWandaConfig(**{name: "en"}), name) == ("en",)


@pytest.mark.parametrize(
    ("key", "near"), [("sparsty", "sparsity"), ("n_samples_per_language", "samples_per_language"), ("Seed", "seed")]
)
def test_unknown_key_names_the_nearest_setting(key: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"'{key}' is not a setting.*'{near}'"):
        MWandaConfig.from_dict({"sparsity": 0.5, key: 1})


@pytest.mark.parametrize("key", ["zzzz", "", 7])
def test_unknown_key_without_a_near_one_lists_the_settings(key: Any) -> None:
    with pytest.raises(ValueError, match=r"Settings are: .*samples_per_language"):
        MWandaConfig.from_dict({key: 1})


def test_settings_cannot_be_assigned_or_changed_from_outside() -> None:
    languages, weights = ["en", "sw"], {"en": 1.0, "sw": 2.0}
    config = MWandaConfig(languages=languages, language_weights=weights)
    languages.append("fr")
    weights["en"] = -1.0
    assert config == MWandaConfig(languages=["en", "sw"], language_weights={"en": 1.0, "sw": 2.0})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.sparsity = 0.9  # type: ignore[misc]
    with pytest.raises(TypeError):
        MWandaConfig(0.9)  # type: ignore[misc]


def test_language_weights_cannot_be_changed_in_place() -> None:
    config = MWandaConfig(language_weights={"en": 1.0})
    assert isinstance(config.language_weights, Mapping)
    with pytest.raises(TypeError):
        config.language_weights["en"] = -1.0  # type: ignore[index]
    assert config.to_dict()["language_weights"] == {"en": 1.0}


def test_changing_the_dict_of_settings_leaves_the_config_alone() -> None:
    config = MWandaConfig(language_weights={"en": 1.0}, languages=["en"])
    values = config.to_dict()
    values["language_weights"]["en"] = 5.0
    values["languages"].append("sw")
    assert config == MWandaConfig(language_weights={"en": 1.0}, languages=["en"])


def test_replace_derives_a_checked_config() -> None:
    config = MWandaConfig(languages=["zh-Hant"], language_weights={"zh-Hant": 2.0})
    assert dataclasses.replace(config, sparsity=0.7) == MWandaConfig(
        sparsity=0.7, languages=["zh-Hant"], language_weights={"zh-Hant": 2.0}
    )
    with pytest.raises(ValueError, match="sparsity=2"):
        dataclasses.replace(config, sparsity=2)


@pytest.mark.parametrize("folder", ["here", "not/yet/made"])
@pytest.mark.parametrize("as_text", [True, False])
def test_saved_config_is_read_back_from_its_folder_and_from_the_file(
    tmp_path: Path, folder: str, as_text: bool
) -> None:
    config = MWandaConfig(sparsity=0.6, languages=["eng_Latn", "język"], language_weights={"język": 3}, exclude=["*.o"])
    target: Any = str(tmp_path / folder) if as_text else tmp_path / folder
    config.save_pretrained(target)
    assert MWandaConfig.from_pretrained(target) == config
    assert MWandaConfig.from_pretrained(tmp_path / folder / CONFIG_NAME) == config
    assert "język" in (tmp_path / folder / CONFIG_NAME).read_text(encoding="utf-8")


def test_folder_without_config_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=CONFIG_NAME):
        MWandaConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["absent.json", "absent/folder"])
def test_absent_path_names_the_path_and_what_to_give(tmp_path: Path, name: str) -> None:
    with pytest.raises((FileNotFoundError, ValueError), match=f"(?s){name}.*{CONFIG_NAME}|{CONFIG_NAME}.*{name}"):
        MWandaConfig.from_pretrained(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{sparsity: 0.5}", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[0.5]", "one JSON object.*list"),
        (b"null", "one JSON object.*NoneType"),
        (b'{"sparsety": 0.5}', "Did you mean 'sparsity'"),
        (b'{"sparsity": NaN}', "sparsity=nan"),
    ],
)
def test_unreadable_file_says_why(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / CONFIG_NAME).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        MWandaConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("chosen", "activity"),
    [
        ({"activation": "positive"}, "positive"),
        ({"activation": "above_rms", "activation_threshold": 0.25}, "above_rms>0.25"),
        ({"activation": "none"}, None),
        ({"activation": "positive", "activation_exponent": 0}, None),
        ({"activation": "positive", "criterion": "wanda"}, None),
    ],
)
def test_activity_is_counted_only_where_the_score_uses_it(chosen: dict[str, Any], activity: str | None) -> None:
    assert MWandaConfig(**chosen).activity == activity


@pytest.mark.parametrize(
    "statement", ["import optimum_mwanda", "from optimum_mwanda.configuration import MWandaConfig"]
)
def test_importing_settings_loads_neither_torch_nor_transformers(statement: str) -> None:
    code = f"{statement}; import sys; print({{'torch', 'transformers', 'datasets'}} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_parts_of_several_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"reconstruction_blocks=2 cannot be combined with .*'part'.*leave one of"):
        MWandaConfig(reconstruction="block", reconstruction_region="part", reconstruction_blocks=2)


@pytest.mark.parametrize("criterion", UPDATING)
@pytest.mark.parametrize("contradiction", [{"reconstruction": "none"}, {"refinement": "swap"}])
def test_a_criterion_that_updates_weights_refuses_what_contradicts_it(
    criterion: str, contradiction: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match=f"criterion='{criterion}'.*leave reconstruction and refinement out"):
        MWandaConfig(criterion=criterion, **contradiction)


@pytest.mark.parametrize(
    ("given", "reconstruction", "damping", "calibration"),
    [
        ({}, "none", 0.1, "dense"),
        ({"refinement": "swap"}, "none", 0.1, "dense"),
        ({"reconstruction": "obs"}, "obs", 0.1, "sequential"),
        ({"criterion": "alps"}, "obs", 0.1, "sequential"),
        ({"criterion": "sparsegpt"}, "obs", 0.01, "sequential"),
        ({"criterion": "sparsegpt", "calibration": "dense", "damping": 0.5}, "obs", 0.5, "dense"),
        ({"reconstruction": "block"}, "block", 0.1, "sequential"),
        ({"criterion": "alps", "reconstruction": "block"}, "block", 0.1, "sequential"),
        ({"criterion": "sparsegpt", "reconstruction": "obs+block"}, "obs+block", 0.01, "sequential"),
    ],
)
def test_what_updates_imply_is_filled_in(
    given: dict[str, Any], reconstruction: str, damping: float, calibration: str
) -> None:
    config = MWandaConfig(**given)
    assert (config.reconstruction, config.damping, config.calibration) == (reconstruction, damping, calibration)


@pytest.mark.parametrize(
    ("given", "changes", "expected"),
    [
        ({}, {"reconstruction": "obs"}, {"calibration": "sequential", "damping": 0.1}),
        ({}, {"criterion": "sparsegpt"}, {"reconstruction": "obs", "calibration": "sequential", "damping": 0.01}),
        ({"criterion": "sparsegpt"}, {"criterion": "wanda"}, {"reconstruction": "none", "calibration": "dense"}),
        ({"calibration": "sequential"}, {"criterion": "wanda"}, {"calibration": "sequential"}),
        ({"damping": 0.5}, {"criterion": "alps"}, {"damping": 0.5, "calibration": "sequential"}),
        ({}, {"reconstruction": "obs", "calibration": "dense"}, {"calibration": "dense"}),
        ({}, {"reconstruction": "block"}, {"calibration": "sequential"}),
        ({"reconstruction": "block"}, {"reconstruction": "none"}, {"calibration": "dense"}),
        ({}, {"refinement": "swap+block"}, {"calibration": "sequential", "reconstruction": "none"}),
        ({"refinement": "block"}, {"refinement": "swap"}, {"calibration": "dense"}),
        ({"criterion": "alps", "reconstruction": "block"}, {"criterion": "wanda"}, {"reconstruction": "block"}),
    ],
)
def test_a_copy_fills_in_what_follows_from_its_changes(
    given: dict[str, Any], changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    config = MWandaConfig(**given).replace(**changes)
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("given", "statistics", "blockwise"),
    [
        ({}, True, False),
        ({"criterion": "magnitude", "allocation": "uniform"}, False, False),
        ({"criterion": "magnitude", "allocation": "uniform", "calibration": "sequential"}, False, False),
        ({"criterion": "magnitude", "allocation": "alpha"}, False, False),
        ({"criterion": "magnitude", "allocation": "owl"}, True, False),
        ({"criterion": "magnitude", "allocation": "owl", "calibration": "sequential"}, True, True),
        ({"criterion": "magnitude", "allocation": "uniform", "refinement": "swap"}, True, True),
        ({"criterion": "magnitude", "allocation": "uniform", "reconstruction": "obs"}, True, True),
        ({"criterion": "wanda", "pattern": "2:4"}, True, False),
        ({"calibration": "sequential"}, True, True),
        ({"refinement": "swap", "calibration": "dense"}, True, True),
        ({"criterion": "sparsegpt", "calibration": "dense"}, True, True),
        ({"criterion": "alps", "allocation": "uniform"}, True, True),
        ({"criterion": "magnitude", "allocation": "uniform", "reconstruction": "block"}, True, True),
        ({"criterion": "magnitude", "allocation": "uniform", "refinement": "block"}, True, True),
    ],
)
def test_what_data_are_needed_and_when(given: dict[str, Any], statistics: bool, blockwise: bool) -> None:
    config = MWandaConfig(**given)
    assert (config.needs_statistics, config.works_blockwise) == (statistics, blockwise)


def test_the_docstring_says_what_each_setting_may_be() -> None:
    text = " ".join((MWandaConfig.__doc__ or "").split())
    assert "sparsity (`float in [0, 1) | None`, defaults to `None`)" in text
    assert "base (`'wanda' | 'ria'`, defaults to `'wanda'`)" in text
    assert "batch_size (`int at least 1`, defaults to `8`)" in text
    assert "owl_multiplier (`float above 0`, defaults to `5.0`)" in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {},
            r"group='row' and refinement='none'.*give group='matrix', refinement='swap', reconstruction='block' or",
        ),
        ({"criterion": "alps"}, r"has no effect with group='row'.*give group='matrix', reconstruction='block' or"),
        (
            {"pattern": "2:4", "group": "matrix"},
            r"with pattern='2:4'.*give refinement='swap', reconstruction='block' or",
        ),
        ({"pattern": "2:4", "criterion": "alps"}, r"has no effect with pattern='2:4'.*give reconstruction='block' or"),
    ],
    ids=str,
)
def test_sensitivity_without_an_effect_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MWandaConfig(sensitivity="fisher", **settings)


@pytest.mark.parametrize("reconstruction", ["obs", "obs+block"])
def test_solvers_without_factors_of_rows_are_refused(reconstruction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = dataclasses.replace(CRITERIA["alps"], weighs_rows=False)
    monkeypatch.setitem(CRITERIA, "alps", plain)
    chosen: dict[str, Any] = {"criterion": "alps", "sensitivity": "fisher", "reconstruction": reconstruction}
    with pytest.raises(ValueError, match="criterion='alps', which takes no sensitivities of rows"):
        MWandaConfig(group="matrix", **chosen)
    if reconstruction == "obs+block":
        assert MWandaConfig(group="row", **chosen).weighs_outputs


def test_what_sensitivities_are_for() -> None:
    rows = MWandaConfig(sensitivity="fisher", group="matrix", criterion="magnitude", allocation="uniform")
    assert (rows.weighs_rows, rows.couples_rows, rows.needs_statistics) == (True, False, True)
    swaps = MWandaConfig(sensitivity="fisher", pattern="2:4", refinement="swap")
    assert (swaps.weighs_rows, swaps.couples_rows) == (False, True)
    assert not MWandaConfig(group="matrix", refinement="swap").couples_rows
