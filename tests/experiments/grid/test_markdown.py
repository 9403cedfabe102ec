"""Tables and pictures, from results alone."""

import itertools
from pathlib import Path

import pytest

from optimum_mwanda.experiments.grid.markdown import (
    cost_table,
    difference_table,
    model_tables,
    shown_methods,
    to_markdown,
)
from optimum_mwanda.experiments.grid.pictures import make_curves, plot_sections, write_reports
from optimum_mwanda.experiments.grid.summary import Section, make_sections

from .made import make_results, make_run


def sections() -> list[Section]:
    runs = []
    for condition in ("multilingual", "only en"):
        for point in ({"sparsity": 0.5}, {"sparsity": 0.7}, {"pattern": "2:4"}):
            options = {"condition": condition, **point}
            runs += [
                make_run("wanda", 0.2, 0.4, 0.6, **options),
                make_run("ria", 0.1, 0.2, 0.3, **options),
                make_run("magnitude", 0.4, 0.4, 0.8, **options),
            ]
    return make_sections(make_results(*runs))


def cells(table: str, row: str) -> list[str]:
    (line,) = (line for line in table.splitlines() if line.startswith(f"| {row} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_costs_are_factors_of_the_perplexity() -> None:
    # exp(0.4), exp(0.3), exp(0.6), exp(0.6)
    assert cells(cost_table(sections()[0]), "wanda") == ["wanda", "1", "1.492", "1.350", "1.822", "1.822", "sw"]


def test_differences_are_percent_of_the_increase_of_the_baseline() -> None:
    table = difference_table(sections()[0], "wanda")
    interval = "-50.0 [-50.0, -50.0]"
    assert cells(table, "ria") == ["ria", interval, interval, interval, interval]
    assert cells(table, "magnitude")[1] == "+33.3 [+33.3, +33.3]"
    assert "| wanda" not in table


def test_models_stand_beside_each_other() -> None:
    small = sections()
    at = {"condition": "multilingual", "sparsity": 0.5}
    large = make_sections(make_results(make_run("wanda", 0.2, 0.2, 0.4, **at), make_run("ria", 0.3, 0.3, 0.6, **at)))
    table = model_tables({"small": small, "large": large})
    assert "### 50 %, calibration: multilingual" in table
    first = table.split("### ")[1]
    assert cells(first, "ria") == ["ria", "-50.0 [-50.0, -50.0] (-50.0)", "+50.0 [+50.0, +50.0] (+50.0)"]
    assert cells(first, "magnitude")[1:] == ["+33.3 [+33.3, +33.3] (+33.3)", ""]
    assert "| wanda" not in table


def test_differences_are_over_the_seeds_that_both_have() -> None:
    runs = [make_run("wanda", *[0.2 + seed] * 3, seed=seed) for seed in (0, 1)]
    (section,) = make_sections(make_results(*runs, make_run("ria", 0.1, 0.1, 0.1)))
    assert cells(difference_table(section, "wanda"), "ria")[1] == "-50.0 [-50.0, -50.0]"


def test_points_need_not_share_a_method(tmp_path: Path) -> None:
    found = make_sections(
        make_results(make_run("wanda", 0.2, 0.4, 0.6, sparsity=0.5), make_run("ria", 0.1, 0.2, 0.3, sparsity=0.7))
    )
    curves = make_curves(found)
    assert {name: [point.sparsity for point in curve] for name, curve in curves.items()} == {
        "wanda": [0.5],
        "ria": [0.7],
    }
    assert len(plot_sections(found, tmp_path / "pictures")) == 6
    (page,) = write_reports(found, tmp_path / "page.html")
    assert "wanda, 50 %" in page.read_text()
    assert "### 70 %" in to_markdown(found)


def test_markdown_has_a_part_for_every_calibration_and_point() -> None:
    text = to_markdown(sections())
    heads = [line for line in text.splitlines() if line.startswith("#")]
    points = ["50 %", "70 %", "2:4"]
    parts = [["## Calibration: multilingual", *(f"### {each}" for each in points)]]
    parts += [["## Calibration: only en", *(f"### {each}" for each in points)]]
    parts += [["## Calibrations compared", *(f"### {each}, by calibration" for each in points)]]
    assert heads == ["# Comparison: acme/model", *itertools.chain(*parts)]
    assert "| **worst**" in text


def test_baseline_and_best_are_shown_unless_others_are_asked_for() -> None:
    assert shown_methods(sections()[:3]) == ["wanda", "ria"]
    assert shown_methods(sections()[:3], baseline="magnitude") == ["magnitude", "ria"]
    assert shown_methods(sections()[:3], show=["magnitude"]) == ["magnitude"]


def test_missing_baseline_leaves_its_table_out() -> None:
    text = to_markdown(sections(), baseline="none of these")
    assert "in percent:" not in text
    assert "| ria " in text


def test_curves_hold_sparsities_and_no_patterns() -> None:
    curves = make_curves(sections()[:3])
    assert {name: [point.sparsity for point in curve] for name, curve in curves.items()} == {
        "wanda": [0.5, 0.7],
        "ria": [0.5, 0.7],
    }
    assert curves["ria"][0].mean.value == pytest.approx(0.2)
    assert make_curves(sections()[2:3]) == {}


def test_pictures_are_png_and_svg(tmp_path: Path) -> None:
    files = plot_sections(sections()[:3], tmp_path / "pictures")
    assert {file.name for file in files} == {
        f"{name}.{kind}"
        for name in (
            "languages-multilingual-50",
            "languages-multilingual-70",
            "languages-multilingual-2-4",
            "sparsity-multilingual",
        )
        for kind in ("png", "svg")
    }
    assert all(file.stat().st_size > 1000 for file in files)


def test_page_per_calibration(tmp_path: Path) -> None:
    (page,) = write_reports(sections()[:3], tmp_path / "one.html")
    text = page.read_text()
    assert page.name == "one.html"
    assert all(f"{name}, {point}" in text for name in ("wanda", "ria") for point in ("50 %", "70 %", "2:4"))
    pictures = [f"Increase of the log-perplexity in every language, {point}" for point in ("50 %", "70 %", "2:4")]
    assert all(picture in text for picture in pictures)
    pages = write_reports(sections(), tmp_path / "two.html")
    assert [page.name for page in pages] == ["two-multilingual.html", "two-only-en.html"]
