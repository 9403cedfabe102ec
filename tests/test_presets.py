"""The name of a method means all of its settings."""

from pathlib import Path
from typing import Any

import pytest

from optimum_mwanda.configuration import MWandaConfig
from optimum_mwanda.presets import PRESETS, preset_settings
from optimum_mwanda.registry import ALLOCATIONS, CRITERIA

GUIDE = Path(__file__).parents[1] / "docs" / "guide.md"
COLUMNS = ("criterion", "group", "allocation", "language_weights", "calibration")
IN_WORDS = ("refinement", "reconstruction")  # the text below the table says what these are


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("magnitude", ("magnitude", "matrix", "uniform", "equal", "dense", "none")),
        ("wanda", ("wanda", "row", "uniform", "proportional", "sequential", "none")),
        ("ria", ("ria", "matrix", "uniform", "proportional", "sequential", "none")),
        ("sparsegpt", ("sparsegpt", "matrix", "uniform", "proportional", "sequential", "obs")),
        ("owl", ("wanda", "row", "owl", "proportional", "sequential", "none")),
        ("alphapruning", ("wanda", "row", "alpha", "proportional", "sequential", "none")),
        ("dlp", ("wanda", "row", "dlp", "proportional", "sequential", "none")),
        ("alps", ("alps", "matrix", "uniform", "proportional", "sequential", "obs")),
        ("m-wanda", ("mwanda", "row", "cwl", "equal", "sequential", "none")),
    ],
)
def test_a_name_means_the_method(name: str, expected: tuple[str, ...]) -> None:
    config = MWandaConfig.preset(name)
    assert tuple(getattr(config, each) for each in (*COLUMNS, "reconstruction")) == expected
    assert config.refinement == "none"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ria", {"ria_exponent": 0.5}),
        ("owl", {"allocation_strength": 0.08, "owl_multiplier": 5.0}),
        ("alphapruning", {"allocation_strength": 0.3}),
        ("dlp", {"allocation_strength": 0.15}),
        ("sparsegpt", {"damping": 0.01}),
        ("alps", {"damping": 0.01}),
    ],
)
def test_published_constants_are_set(name: str, values: dict[str, float]) -> None:
    assert values.items() <= preset_settings(name).items()


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "defaults"])
def test_a_preset_leaves_nothing_that_its_method_reads_to_the_defaults(name: str) -> None:
    settings, config = preset_settings(name), MWandaConfig.preset(name)
    needed = {"criterion", "group", "allocation", *IN_WORDS}
    needed |= {"language_weights", "calibration"} if config.needs_statistics else set()
    needed |= {"allocation_strength"} if ALLOCATIONS[str(config.allocation)].importance else set()
    needed |= {"damping"} if CRITERIA[config.criterion].updates else set()
    assert needed <= settings.keys()
    assert settings.items() <= config.to_dict().items()


def test_defaults_are_the_defaults() -> None:
    assert MWandaConfig.preset("defaults") == MWandaConfig()


def test_what_is_given_wins() -> None:
    config = MWandaConfig.preset("wanda", sparsity=0.7, group="matrix", calibration="dense")
    assert (config.sparsity, config.group, config.calibration) == (0.7, "matrix", "dense")
    assert (config.criterion, config.allocation, config.language_weights) == ("wanda", "uniform", "proportional")
    assert MWandaConfig.preset("sparsegpt", pattern="2:4").sparsity == 0.5
    assert MWandaConfig.preset("wanda").group == "row"


def test_an_unknown_preset_is_an_error_that_names_all() -> None:
    with pytest.raises(ValueError, match="no preset 'wnada'") as raised:
        MWandaConfig.preset("wnada")
    assert all(repr(name) in str(raised.value) for name in PRESETS)


def test_allocation_of_a_preset_that_a_pattern_forbids_is_an_error_that_helps() -> None:
    with pytest.raises(ValueError, match="Give allocation='uniform'"):
        MWandaConfig.preset("owl", pattern="2:4")
    assert MWandaConfig.preset("m-wanda", pattern="2:4", allocation="uniform").kept_of == (2, 4)


def test_the_guide_shows_what_presets_set() -> None:
    lines = [line for line in GUIDE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    start = rows.index(["preset", *(f"`{each}`" for each in COLUMNS), "other settings"])
    assert rows[start + 2 : start + 2 + len(PRESETS)] == [_row(name, each) for name, each in PRESETS.items()]


def _row(name: str, settings: dict[str, Any]) -> list[str]:
    cells = [f"`{settings[column]}`" if column in settings else "" for column in COLUMNS]
    others = {key: value for key, value in settings.items() if key not in (*COLUMNS, *IN_WORDS)}
    shown = ", ".join(f"`{key}={value!r}`".replace("'", '"') for key, value in others.items())
    return [f"`{name}`", *cells, shown]
