"""The grids: every combination of terms, and points that fit a method."""

import itertools
import json
from pathlib import Path

import pytest

from optimum_mwanda.configuration import MWandaConfig
from optimum_mwanda.experiments.grid.methods import BEST, GRID_PRESETS, choose, expand, label, read_methods
from optimum_mwanda.presets import PRESETS
from optimum_mwanda.registry import ALLOCATIONS, CRITERIA


def configs(preset: str) -> dict[str, MWandaConfig]:
    return dict(expand(GRID_PRESETS[preset].methods, [0.6], [], {}))


def test_ablation_holds_every_subset_of_the_terms_on_both_bases() -> None:
    found = set()
    for config in configs("ablation").values():
        base = config.base if config.criterion == "mwanda" else config.criterion
        assert config.group == {"wanda": "row", "ria": "matrix"}[base]
        terms = config.criterion == "mwanda"
        found.add(
            (base, terms and config.variance != "none", config.activity is not None, config.allocation != "uniform")
        )
    assert found == set(itertools.product(("wanda", "ria"), (False, True), (False, True), (False, True)))


def test_one_term_is_all_that_differs() -> None:
    found = configs("ablation")
    for base in ("wanda", "ria"):
        without, with_it = found[f"{base} + activation"].to_dict(), found[f"{base} + variance + activation"].to_dict()
        assert {key for key in without if without[key] != with_it[key]} == {"variance"}


@pytest.mark.parametrize("preset", GRID_PRESETS)
def test_presets_are_legal_at_all_their_points(preset: str) -> None:
    grid = GRID_PRESETS[preset]
    runs = list(expand(grid.methods, grid.sparsities, grid.patterns, {}))
    points = {label(config.target_sparsity, config.pattern) for _, config in runs}
    assert points == {*(f"{100 * each:g} %" for each in grid.sparsities), *grid.patterns}
    assert len({config for _, config in runs}) == len(runs)


def test_baselines_and_allocations_cover_what_the_library_has() -> None:
    assert {config.criterion for config in configs("baselines").values()} == set(CRITERIA)
    for preset in ("allocations", "full"):
        assert {config.allocation for config in configs(preset).values()} == set(ALLOCATIONS)
    owl = configs("baselines")["wanda + owl"]
    assert (owl.criterion, owl.allocation) == ("wanda", "owl")


READ_ALIKE = {"language_weights": "equal", "calibration": "dense", "sparsity": 0.6}


@pytest.mark.parametrize(
    ("method", "preset", "changes"),
    [
        ("magnitude", "magnitude", {"group": "row"}),
        ("wanda", "wanda", READ_ALIKE),
        ("ria", "ria", READ_ALIKE),
        ("wanda + owl", "owl", READ_ALIKE),
        ("wanda + dlp", "dlp", READ_ALIKE),
        ("wanda + alpha", "alphapruning", READ_ALIKE),
        ("wanda + variance + activation + cwl", "m-wanda", READ_ALIKE),
        ("sparsegpt", "sparsegpt", {"language_weights": "equal"}),
        ("alps", "alps", {"language_weights": "equal", "damping": 0.1}),
    ],
)
def test_methods_are_presets_but_for_how_they_read_the_text(
    method: str, preset: str, changes: dict[str, object]
) -> None:
    assert configs("full")[method] == MWandaConfig.preset(preset, **{"sparsity": 0.6, **changes})


def test_published_methods_are_the_presets_as_they_are() -> None:
    found = configs("published")
    assert found == {f"preset {name}": MWandaConfig.preset(name, sparsity=0.6) for name in PRESETS}


def test_pattern_keeps_one_of_the_methods_that_differ_in_the_allocation() -> None:
    runs = dict(expand(BEST, [], ["2:4"], {}))
    assert "alps" in runs
    assert not {"alps + owl", "alps + outliers", "m-wanda on wanda, tuned"} & runs.keys()
    assert (runs["m-wanda on ria"].base, runs["m-wanda on ria"].allocation) == ("ria", "uniform")
    assert (runs["defaults"].allocation, runs["defaults"].target_sparsity) == ("uniform", 0.5)


def test_equal_settings_run_once_under_the_first_name() -> None:
    runs = list(expand({"a": {"criterion": "wanda"}, "b": {"criterion": "wanda"}}, [0.5], [], {}))
    assert [name for name, _ in runs] == ["a"]


def test_methods_override_what_is_shared() -> None:
    runs = dict(expand({"a": {}, "b": {"batch_size": 2}}, [0.5], [], {"batch_size": 4}))
    assert (runs["a"].batch_size, runs["b"].batch_size) == (4, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1}, "'mine' sets 'seed'"),
        ({"bos": "none"}, "'mine' sets 'bos'"),
        ({"reservoir": 9}, "'mine' sets 'reservoir'"),
        ({"calibration_tolerance": 0.1}, "'mine' sets 'calibration_tolerance'"),
        ({"criterium": "ria"}, "'mine'.*'criterion'"),
        ({"group": 3}, "'mine'.*group"),
    ],
)
def test_illegal_methods_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(expand({"mine": settings}, [0.5], [], {}))


def test_grid_of_ones_own_is_read(tmp_path: Path) -> None:
    path = tmp_path / "grid.json"
    path.write_text(json.dumps({"mine": {"criterion": "ria"}, "other": {}}))
    assert choose(read_methods(path), ["other"]) == {"other": {}}
    with pytest.raises(ValueError, match=r"no method 'mime'.*'mine', 'other'"):
        choose(read_methods(path), ["mime"])
    for text in ("{", "[]", '{"mine": 3}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"grid\.json"):
            read_methods(path)
