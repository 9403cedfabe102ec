"""Averages over seeds and folds, computed by hand."""

import math

import pytest

from optimum_mwanda.experiments.grid.summary import average, make_sections

from .made import DENSE, make_report, make_results, make_run


def test_average_is_that_of_log_perplexities_and_windows() -> None:
    found = average([make_report({"en": 1.0}), make_report({"en": 4.0})]).scores["en"]
    assert found.nll == pytest.approx(2.5)
    assert found.windows.nll == pytest.approx([23.0, 24.0, 26.0, 27.0])  # type: ignore[union-attr]


def test_figures_over_seeds() -> None:
    (section,) = make_sections(make_results(make_run("wanda", 0.1, 0.3, 0.4), make_run("wanda", 0.3, 0.5, 0.2, seed=1)))
    assert (section.seen, section.compare(["wanda"]).unseen) == (("en", "fr"), ("sw",))
    figures = section.over_seeds("wanda")
    # Averages over seeds: en 0.2, fr 0.4, sw 0.3. Student's t of one degree of freedom is 12.706.
    assert figures["mean"].value == pytest.approx(0.3)
    assert figures["seen"] == pytest.approx((0.3, 0.3 - 1.2706, 0.3 + 1.2706), abs=1e-3)
    assert figures["unseen"].value == pytest.approx(0.3)
    # The worst language is that of the average, not the worst of each seed, which would give (0.4 + 0.5) / 2.
    assert figures["worst"].value == pytest.approx(0.4)
    change = section.compare(["wanda"]).change("wanda").languages["fr"]
    assert change == pytest.approx((0.4, 0.4, 0.4))  # all windows rose alike: resampling finds no variation


def test_better_is_what_loses_less_on_the_mean() -> None:
    (section,) = make_sections(make_results(make_run("a", 0.1, 0.3, 0.4), make_run("b", 0.1, 0.1, 0.5)))
    assert section.best() == "b"
    values = section.to_dict()
    assert values["methods"]["a"]["worst_language"] == "sw"
    assert values["methods"]["b"]["mean"]["value"] == pytest.approx(0.7 / 3)


def rotation(name: str, folds: int = 3) -> list[object]:
    """Every language loses 0.1 where it is seen and 0.5 where it is left out."""
    runs = []
    for fold, left_out in enumerate(("en", "fr", "sw")[:folds]):
        seen = tuple(each for each in ("en", "fr", "sw") if each != left_out)
        increases = [0.5 if each == left_out else 0.1 for each in ("en", "fr", "sw")]
        runs.append(make_run(name, *increases, seen=seen, fold=(fold, 3), condition="rotation of 3"))
    return runs


def test_rotation_has_every_language_seen_and_left_out() -> None:
    (section,) = make_sections(make_results(*rotation("wanda")))  # type: ignore[arg-type]
    comparison = section.compare(["wanda"])
    assert set(comparison.languages) == {"en", "fr", "sw", "en (left out)", "fr (left out)", "sw (left out)"}
    assert section.seen == ("en", "fr", "sw")
    figures = section.over_seeds("wanda")
    assert (figures["seen"].value, figures["unseen"].value) == pytest.approx((0.1, 0.5))
    gap = comparison.change("wanda").summary["gap"]
    assert gap == pytest.approx((0.4, 0.4, 0.4))


def test_seed_counts_when_all_its_folds_are_there() -> None:
    runs = [*rotation("wanda"), *rotation("ria", folds=2)]
    (section,) = make_sections(make_results(*runs))  # type: ignore[arg-type]
    assert (list(section.seeds), section.unfinished) == (["wanda"], ("ria",))
    assert make_sections(make_results(*rotation("ria", folds=2))) == []  # type: ignore[arg-type]


def test_last_of_several_runs_of_a_name_counts() -> None:
    first, second = make_run("mine", 0.1, 0.1, 0.1), make_run("mine", 0.2, 0.2, 0.2)
    results = make_results(first)
    results.runs["changed settings"] = second
    (section,) = make_sections(results)
    assert section.over_seeds("mine")["mean"].value == pytest.approx(0.2)


def test_seeds_with_other_settings_are_no_seeds_of_a_method() -> None:
    few, many = make_run("mine", 0.9, 0.9, 0.9), make_run("mine", 0.1, 0.1, 0.1, seed=1)
    few.config["batch_size"] = 1  # type: ignore[index]
    (section,) = make_sections(make_results(few, many))
    assert list(section.seeds["mine"]) == [1]
    assert section.over_seeds("mine")["mean"] == pytest.approx((0.1, None, None))


def test_unfinished_runs_with_other_settings_hide_no_finished_ones() -> None:
    (changed,) = rotation("wanda", folds=1)
    changed.config["batch_size"] = 1  # type: ignore[attr-defined]
    results = make_results(*rotation("wanda"))  # type: ignore[arg-type]
    results.runs["changed"] = changed  # type: ignore[assignment]
    (section,) = make_sections(results)
    assert (list(section.seeds), section.unfinished) == (["wanda"], ())
    assert section.over_seeds("wanda")["unseen"].value == pytest.approx(0.5)


def test_sections_are_ordered_by_calibration_and_then_by_point() -> None:
    runs = [
        make_run("a", 0.1, 0.1, 0.1, condition=condition, **point)
        for point in ({"pattern": "2:4"}, {"sparsity": 0.7}, {"sparsity": 0.5})  # as a file that was added to
        for condition in ("multilingual", "only en")
    ]
    found = [(section.condition, section.point, section.sparsity) for section in make_sections(make_results(*runs))]
    points = [("50 %", 0.5), ("70 %", 0.7), ("2:4", None)]
    assert found == [(condition, *point) for condition in ("multilingual", "only en") for point in points]


def test_dense_report_stands_beside_every_method() -> None:
    (section,) = make_sections(make_results(make_run("a", 0.1, 0.1, 0.1)))
    assert section.dense == DENSE
    assert math.exp(section.compare(["a"]).log_ratio("a", "en")) == pytest.approx(math.exp(0.1))
