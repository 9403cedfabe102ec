"""Pictures: the right values in the right places, labels that can be read, files that are the same on every run."""

import math
import struct
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

pytest.importorskip("matplotlib")

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer

from optimum_mwanda import PerplexityComparison, PerplexityReport
from optimum_mwanda.evaluation.bootstrap import Estimate
from optimum_mwanda.experiments.grid.methods import GRID_PRESETS
from optimum_mwanda.pruning.allocation import cross_lingual_correlation
from optimum_mwanda.reporting.plots import (
    CurvePoint,
    plot_block_correlation,
    plot_block_sparsity,
    plot_degradation,
    plot_language_activity,
    plot_language_correlation,
    plot_sparsity_curves,
)
from optimum_mwanda.reporting.plots.activations import (
    block_correlation_figure,
    language_activity_figure,
    language_correlation_figure,
)
from optimum_mwanda.reporting.plots.curves import sparsity_curves_figure
from optimum_mwanda.reporting.plots.degradation import degradation_figure
from optimum_mwanda.reporting.plots.drawing import label_rows, new_figure, render, scale_of, shorten, style
from optimum_mwanda.reporting.plots.profiles import (
    group_by_block,
    language_activity,
    pairs,
    pairwise_correlation,
    similarity_order,
)
from optimum_mwanda.reporting.plots.sparsity import block_sparsity_figure
from tests.record.examples import record_of
from tests.reporting.pictured import make_comparison, make_languages, make_score, make_statistics, random_statistics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECORD = record_of({"layers.0": 0.4, "layers.1": 0.5, "layers.2": 0.9})
LAYERS = [f"model.layers.{i}" for i in range(126)]
ENCODER = [f"encoder.block.{i}" for i in range(24)]
DECODER = [f"decoder.block.{i}" for i in range(24)]
CRITERIA = ["mwanda", "wanda", "ria", "owl", "dlp", "alphapruning", "sparsegpt", "magnitude"]


def make_curves(criteria: list[str], sparsities: list[float]) -> dict[str, list[CurvePoint]]:
    return {
        name: [
            CurvePoint(
                s, Estimate(s / 4, s / 5, s / 3), Estimate(s * (index + 1) / 2, s / 4, s * 9), f"{name[:3]}_Latn"
            )
            for s in sparsities
        ]
        for index, name in enumerate(criteria)
    }


PLOTS: dict[str, Callable[[Path], None]] = {
    "sparsity": lambda path: plot_block_sparsity(RECORD, path),
    "activity": lambda path: plot_language_activity(random_statistics(3, 2), path),
    "block correlation": lambda path: plot_block_correlation(random_statistics(3, 2), path),
    "language correlation": lambda path: plot_language_correlation(random_statistics(3, 2), path),
    "degradation": lambda path: plot_degradation(make_comparison(["en", "sw"], ["wanda"], ["en"]), path),
    "curves": lambda path: plot_sparsity_curves(make_curves(["wanda"], [0.5, 0.6]), path),
}


def labels(axis: Any) -> list[str]:
    return [text.get_text() for text in axis.get_ticklabels()]


def tick_texts(axis: Any) -> list[Any]:
    """Labels in sight: matplotlib keeps some beyond the ends of an axis that it never draws."""
    low, high = sorted(axis.get_view_interval())
    ticks = sorted([*axis.get_major_ticks(), *axis.get_minor_ticks()], key=lambda tick: tick.get_loc())
    return [tick.label1 for tick in ticks if low <= tick.get_loc() <= high]


def assert_readable(figure: "Figure", texts: list[Any]) -> None:
    """No text lies on the next one, and none is cut off by the edge of the picture."""
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in texts if text.get_visible() and text.get_text()]
    assert boxes
    for before, after in pairwise(boxes):
        assert not before.overlaps(after)
    width, height = figure.bbox.size
    assert all(box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in boxes)


@pytest.mark.parametrize("plot", PLOTS)
def test_both_formats_are_written_the_same_on_every_run(plot: str, tmp_path: Path) -> None:
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
        PLOTS[plot](first)
        PLOTS[plot](second)
        assert first.read_bytes().startswith(start)
        assert first.read_bytes() == second.read_bytes()
        assert b"matplotlib" not in first.read_bytes().lower().replace(b"matplotlib.axis", b"")
        assert b"dc:date" not in first.read_bytes()


@pytest.mark.parametrize("plot", PLOTS)
def test_other_formats_are_refused(plot: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.png or \.svg"):
        PLOTS[plot](tmp_path / "picture.pdf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("plot", PLOTS)
def test_without_matplotlib_the_error_says_what_to_install(
    plot: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        PLOTS[plot](tmp_path / "picture.png")


def test_blocks_are_told_by_the_first_number_of_a_name() -> None:
    names = ["model.layers.0.q_proj", "model.layers.10.mlp.experts.3.up", "model.layers.0.down", "lm_head"]
    assert group_by_block(names) == {
        "model.layers.0": ["model.layers.0.q_proj", "model.layers.0.down"],
        "model.layers.10": ["model.layers.10.mlp.experts.3.up"],
        "lm_head": ["lm_head"],
    }


def test_activity_is_the_log_ratio_of_sizes_averaged_over_matrices() -> None:
    # Sizes 1 and 3, and 2 and 2: the ratios to their means are 1/2 and 3/2, and 1 and 1.
    statistics = make_statistics(
        ["en", "sw"],
        {
            "layers.0.a": torch.tensor([[0.5, 1.5], [9.0, 9.0]]),
            "layers.0.b": torch.tensor([[4.0, 4.0], [8.0, 0.0]]),
            "layers.1.a": torch.zeros(2, 2),
        },
    )
    activity = language_activity(statistics, group_by_block(list(statistics.weights)))
    expected = [[math.log2(0.5) / 2, 0.0], [math.log2(1.5) / 2, 0.0]]
    torch.testing.assert_close(activity, torch.tensor(expected, dtype=torch.float64))


def test_language_without_tokens_is_left_out_and_grey() -> None:
    statistics = make_statistics(
        ["en", "fr", "sw"],
        {"layers.0.a": torch.tensor([[1.0, 1.0], [9.0, 9.0], [0.0, 0.0]])},
        tokens=[100, 100, 0],
    )
    blocks = {"layers.0": ["layers.0.a"]}
    activity = language_activity(statistics, blocks)[:, 0]
    torch.testing.assert_close(activity[:2], torch.tensor([0.5, 1.5], dtype=torch.float64).log2())
    assert activity[2].isnan()
    assert pairwise_correlation(statistics, blocks)[0].isnan().tolist() == [[False, False, True]] * 2 + [[True] * 3]
    image = language_activity_figure(statistics, blocks).axes[0].images[0]
    assert image.get_array().mask.ravel().tolist() == [False, False, True]
    assert to_hex(image.cmap.get_bad()) == "#bbbbbb"


@given(st.integers(2, 6), st.integers(1, 3), st.integers(0, 2**32))
def test_mean_over_pairs_is_the_correlation_that_cwl_allocates_by(languages: int, matrices: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    squares = {f"b.0.{i}": torch.rand(languages, 5, generator=generator) for i in range(matrices)}
    squares["b.0.flat"] = torch.ones(languages, 5)
    statistics = make_statistics(make_languages(languages), squares)
    correlations = pairwise_correlation(statistics, {"b.0": list(squares)})
    rho = [cross_lingual_correlation(statistics.weights[name].mean_square) for name in squares]
    assert float(pairs(correlations).mean()) == pytest.approx(sum(rho) / len(rho))
    torch.testing.assert_close(correlations, correlations.mT)


def test_similar_languages_stand_side_by_side() -> None:
    # 0 and 2 belong together, and so do 1 and 3; 2 is close to everything.
    near = torch.tensor([[1.0, 0.1, 0.9, 0.2], [0.1, 1.0, 0.5, 0.8], [0.9, 0.5, 1.0, 0.6], [0.2, 0.8, 0.6, 1.0]])
    assert similarity_order(near) == [2, 0, 3, 1]


@given(st.integers(1, 8), st.integers(0, 2**32))
def test_order_by_similarity_names_every_language_once(languages: int, seed: int) -> None:
    values = torch.randn(languages, languages, generator=torch.Generator().manual_seed(seed))
    values[0] = torch.nan
    assert sorted(similarity_order(values)) == list(range(languages))


def test_sparsity_bars_have_the_height_of_the_record() -> None:
    axes = block_sparsity_figure(RECORD).axes[0]
    assert [bar.get_center()[0] for bar in axes.patches] == pytest.approx([0, 1, 2])
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([40, 50, 90])
    assert axes.lines[0].get_ydata()[0] == pytest.approx(60)


def sparsity_picture(names: list[str]) -> "Figure":
    return block_sparsity_figure(record_of(dict.fromkeys(names, 0.5)))


def activity_picture(names: list[str]) -> "Figure":
    return language_activity_figure(
        make_statistics(["en", "sw"], {f"{name}.up": torch.rand(2, 4) + 0.1 for name in names})
    )


def correlation_picture(names: list[str]) -> "Figure":
    return block_correlation_figure(torch.rand(len(names), 2, 2), names)


@pytest.mark.parametrize("draw", [sparsity_picture, activity_picture, correlation_picture])
@pytest.mark.parametrize(
    ("names", "label", "numbers", "lines"),
    [
        (["h.0"], "block of h", {0: "0"}, []),
        ([LAYERS[3], LAYERS[5]], "block of model.layers", {0: "3", 1: "5"}, []),
        (LAYERS, "block of model.layers", {at: str(at) for at in range(0, 126, 20)}, []),
        (LAYERS[60:], "block of model.layers", {at: str(at + 60) for at in range(0, 66, 10)}, []),
        (["first", "second"], "block", {0: "0", 1: "1"}, []),
        (
            ENCODER[:6] + DECODER[:6],
            "block of encoder.block | decoder.block",
            {at: str(at % 6) for at in range(12)},
            [5.5],
        ),
        (
            ENCODER + DECODER,
            "block of encoder.block | decoder.block",
            {at: str(at % 24) for at in (0, 5, 10, 15, 20, 24, 29, 34, 39, 44)},
            [23.5],
        ),
        (
            ENCODER[3:4] + DECODER,
            "block of encoder.block | decoder.block",
            {0: "3", 1: "0", 6: "5", 11: "10", 16: "15", 21: "20"},
            [0.5],
        ),
    ],
)
def test_blocks_have_the_numbers_of_the_model(
    draw: Callable[[list[str]], "Figure"], names: list[str], label: str, numbers: dict[int, str], lines: list[float]
) -> None:
    figure = draw(names)
    axes = figure.axes[0]
    assert axes.get_xlabel() == label
    assert dict(zip(axes.get_xticks(), labels(axes.xaxis), strict=True)) == numbers
    upright = [line.get_xdata() for line in axes.lines if tuple(line.get_ydata()) == (0, 1)]
    assert [list(ends) for ends in upright] == [[at, at] for at in lines]
    assert_readable(figure, tick_texts(axes.xaxis))


@pytest.mark.parametrize(("languages", "blocks"), [(1, 1), (2, 2), (100, 126)])
def test_heat_map_of_activity_labels_every_language(languages: int, blocks: int) -> None:
    statistics = random_statistics(languages, blocks)
    figure = language_activity_figure(statistics)
    axes = figure.axes[0]
    wanted = language_activity(statistics, group_by_block(list(statistics.weights)))
    torch.testing.assert_close(torch.from_numpy(axes.images[0].get_array().filled()), wanted)
    low, high = axes.images[0].get_clim()
    assert low == -high
    assert labels(axes.yaxis) == list(statistics.languages)
    assert_readable(figure, tick_texts(axes.yaxis))
    assert_readable(figure, tick_texts(axes.xaxis))


@pytest.mark.parametrize("languages", [2, 100])
def test_heat_map_of_languages_shows_every_pair_under_its_labels(languages: int) -> None:
    statistics = random_statistics(languages, 3)
    correlations = pairwise_correlation(statistics, group_by_block(list(statistics.weights)))
    figure = language_correlation_figure(correlations, statistics.languages)
    axes = figure.axes[0]
    shown = labels(axes.yaxis)
    assert shown == labels(axes.xaxis)
    assert sorted(shown) == list(statistics.languages)
    at = [statistics.languages.index(name) for name in shown]
    wanted = correlations.mean(0)[at][:, at].fill_diagonal_(torch.nan)
    drawn = torch.from_numpy(axes.images[0].get_array().filled(math.nan))
    torch.testing.assert_close(drawn, wanted, equal_nan=True)
    assert_readable(figure, tick_texts(axes.yaxis))
    assert_readable(figure, tick_texts(axes.xaxis))


def test_line_of_correlation_and_its_range_follow_the_pairs() -> None:
    statistics = random_statistics(4, 5)
    blocks = group_by_block(list(statistics.weights))
    values = pairs(pairwise_correlation(statistics, blocks))
    axes = block_correlation_figure(pairwise_correlation(statistics, blocks), list(blocks)).axes[0]
    assert list(axes.lines[0].get_ydata()) == pytest.approx(values.mean(1).tolist())
    corners = axes.collections[0].get_paths()[0].vertices
    for block in range(5):
        heights = [y for x, y in corners if x == block]
        assert (min(heights), max(heights)) == pytest.approx((float(values[block].min()), float(values[block].max())))


def test_correlation_of_one_language_is_refused(tmp_path: Path) -> None:
    for plot in (plot_block_correlation, plot_language_correlation):
        with pytest.raises(ValueError, match="needs two languages"):
            plot(random_statistics(1, 2), tmp_path / "picture.png")


def drawn_estimates(figure: "Figure", color: str) -> dict[str, tuple[float, float, float, bool]]:
    """Language to value, ends of the interval and hollowness of the marker in one colour."""
    found = {}
    for axes in figure.axes:
        names = dict(zip((round(y) for y in axes.get_yticks()), labels(axes.yaxis), strict=True))
        for container in axes.containers:
            assert isinstance(container, ErrorbarContainer)
            line, _, (bars,) = container.lines
            if line.get_color() != color:
                continue
            hollow = line.get_markerfacecolor() == "white"
            for x, y, segment in zip(line.get_xdata(), line.get_ydata(), bars.get_segments(), strict=True):
                assert segment[0][1] == y
                found[names[round(y)]] = (x, segment[0][0], segment[1][0], hollow)
    return found


@pytest.mark.parametrize(("languages", "models"), [(2, 1), (27, 3), (100, 8)])
def test_degradation_shows_every_language_of_every_model(languages: int, models: int) -> None:
    codes = make_languages(languages)
    comparison = make_comparison(codes, CRITERIA[:models], codes[: languages // 2])
    figure = degradation_figure(comparison)
    for index, name in enumerate(comparison.pruned):
        change = comparison.change(name).languages
        drawn = drawn_estimates(figure, style(index)["color"])
        assert drawn.keys() == set(codes)
        for language, (*estimate, hollow) in drawn.items():
            assert estimate == pytest.approx(list(change[language]))
            assert hollow is (language in comparison.unseen)
    assert [text.get_text() for text in figure.legends[0].get_texts()][:models] == CRITERIA[:models]
    for axes in figure.axes:
        assert_readable(figure, tick_texts(axes.yaxis))
        assert_readable(figure, tick_texts(axes.xaxis))


def test_languages_that_suffer_most_stand_on_top() -> None:
    comparison = make_comparison(make_languages(60), ["a", "b"])
    figure = degradation_figure(comparison)
    order = [label for axes in figure.axes for label in labels(axes.yaxis)]
    sums = [comparison.log_ratio("a", each) + comparison.log_ratio("b", each) for each in order]
    assert sums == sorted(sums, reverse=True)
    assert len(figure.axes) == 2
    assert all(axes.get_ylim()[0] > axes.get_ylim()[1] for axes in figure.axes)


def test_of_very_many_languages_those_are_drawn_that_suffer_most_and_least() -> None:
    comparison = make_comparison(make_languages(260), ["a"])
    figure = degradation_figure(comparison)
    by_cost = sorted(comparison.languages, key=lambda each: -comparison.log_ratio("a", each))
    assert [label for axes in figure.axes for label in labels(axes.yaxis)] == by_cost[:100] + by_cost[-100:]
    assert [axes.get_title() for axes in figure.axes] == [
        "the 100 of 260 languages that suffer most",
        "",
        "the 100 of 260 languages that suffer least",
        "",
    ]


def test_one_collapsed_language_leaves_the_others_apart() -> None:
    codes = make_languages(100)
    dense = {each: make_score(each, 3, 0, 0) for each in codes}
    costs = dict(zip(codes, [8.0, -0.1, *(0.3 * at / 97 for at in range(98))], strict=True))
    pruned = {each: make_score(each, 3 + costs[each], 0, 0) for each in codes}
    comparison = PerplexityComparison(PerplexityReport(dense, "m", 64), {"a": PerplexityReport(pruned, "a", 64)})
    figure = degradation_figure(comparison)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    worst, most, least, fewest = (
        axes.transAxes.inverted().transform(axes.transData.transform((cost, 0)))[0] for cost in (8.0, 0.3, 0.0, -0.1)
    )
    assert worst < 0.98, "the marker is not cut off"
    assert worst - most > 0.2
    assert most - least > 0.2
    assert least - fewest > 0.1
    assert_readable(figure, tick_texts(axes.xaxis))


def test_logarithmic_scale_of_two_languages_can_be_read() -> None:
    dense = {each: make_score(each, 3, 0, 0) for each in ("en", "sw")}
    pruned = {"en": make_score("en", 3.131, 0, 0), "sw": make_score("sw", 5.9, 0, 0)}
    comparison = PerplexityComparison(PerplexityReport(dense, "m", 64), {"a": PerplexityReport(pruned, "a", 64)})
    figure = degradation_figure(comparison)
    figure.draw_without_rendering()
    assert_readable(figure, tick_texts(figure.axes[0].xaxis))


def test_degradation_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no pruned model"):
        degradation_figure(make_comparison(["en", "sw"], []))


@pytest.mark.parametrize("criteria", [1, 8])
def test_curves_show_mean_and_worst_and_name_the_worst(criteria: int) -> None:
    sparsities = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    curves = make_curves(CRITERIA[:criteria], sparsities[::-1])
    figure = sparsity_curves_figure(curves)
    mean, worst, key, names = figure.axes
    for index, curve in enumerate(curves.values()):
        points = sorted(curve, key=lambda point: point.sparsity)
        for axes, values in ((mean, [p.mean.value for p in points]), (worst, [p.worst.value for p in points])):
            line = axes.containers[index].lines[0]
            assert list(line.get_xdata()) == pytest.approx([30, 40, 50, 60, 70, 80])
            assert list(line.get_ydata()) == pytest.approx(values)
            assert line.get_color() == style(index)["color"]
    for row, (text, line) in enumerate(zip(key.texts, key.lines, strict=True)):
        assert (text.get_text(), text.get_position()[1], set(line.get_ydata())) == (CRITERIA[row], row, {row})
        assert (line.get_color(), line.get_marker()) == tuple(style(row).values())
    assert key.get_ylim() == names.get_ylim()
    named = {(round(t.get_position()[0]), t.get_position()[1]): t.get_text() for t in names.texts if t.get_visible()}
    assert named == {(round(100 * s), row): f"{name[:3]}_Latn" for row, name in enumerate(curves) for s in sparsities}
    assert_readable(figure, names.texts)
    assert names.get_xlabel() == ""
    assert mean.get_ylim() == worst.get_ylim()


@pytest.mark.parametrize(
    "methods",
    [
        ["a"],
        list(GRID_PRESETS["ablation"].methods),
        [f"a name that is longer than there is room {'x' * 40} {i}" for i in range(24)],
    ],
)
def test_names_of_methods_neither_narrow_the_curves_nor_look_alike(methods: list[str]) -> None:
    figure = sparsity_curves_figure(make_curves(methods, [0.5, 0.6, 0.7]))
    mean, worst, key, _ = figure.axes
    assert_readable(figure, key.texts)
    assert min(mean.get_position().width, worst.get_position().width) > 0.4
    assert len({text.get_text() for text in key.texts}) == len(methods)
    boxes = [text.get_window_extent() for text in key.texts]
    assert all(box.x0 >= key.bbox.x0 for box in boxes), "no name is clipped"


def test_names_of_the_ablation_are_shown_in_full() -> None:
    methods = list(GRID_PRESETS["ablation"].methods)
    figure = sparsity_curves_figure(make_curves(methods, [0.5, 0.6]))
    assert [text.get_text() for text in figure.axes[2].texts] == methods


def test_names_that_would_lie_on_each_other_are_hidden() -> None:
    figure = sparsity_curves_figure(make_curves(["wanda"], [0.50, 0.501, 0.6]))
    texts = figure.axes[3].texts
    assert figure.axes[3].get_xlabel() == "names that do not fit are left out"
    assert sorted((round(t.get_position()[0], 1), t.get_visible()) for t in texts) == [
        (50.0, True),
        (50.1, False),
        (60.0, True),
    ]


def test_point_of_a_curve_summarises_a_comparison() -> None:
    comparison = make_comparison(["en", "fr", "sw"], ["wanda"])
    point = CurvePoint.of(0.5, comparison, "wanda")
    summary = comparison.summary("wanda")
    assert (point.mean.value, point.worst.value) == pytest.approx((summary["mean"], summary["worst"]))
    assert point.worst_language == comparison.worst("wanda")
    assert point.mean.low is not None
    assert point.mean.low < point.mean.value


def test_curves_without_a_point_are_refused() -> None:
    with pytest.raises(ValueError, match="no point"):
        sparsity_curves_figure({"wanda": []})


def test_increases_far_apart_are_drawn_on_a_logarithmic_scale() -> None:
    assert scale_of([0.01, 0.5]) == {"value": "log"}
    assert scale_of([0.1, 0.5]) == {"value": "linear"}


def test_one_tiny_increase_leaves_the_room_to_the_others() -> None:
    others = [0.1 + 0.003 * index for index in range(100)]
    assert scale_of([1e-4, *others]) == {"value": "linear"}
    assert scale_of([1e-4, *others, 40.0]) == {"value": "symlog", "linthresh": pytest.approx(0.1)}
    assert scale_of([1e-4, 1.0, 1.1]) == {"value": "linear"}
    assert scale_of([0.01, 0.1, 1.0, 10.0]) == {"value": "log"}


def test_scale_with_increases_of_zero_and_less_is_linear_unless_one_stands_out() -> None:
    assert scale_of([-0.1, 0.1, 0.2, 0.3, 4.0]) == {"value": "linear"}  # the median size is 0.2
    assert scale_of([-0.1, 0.1, 0.2, 0.3, 4.1]) == {"value": "symlog", "linthresh": pytest.approx(0.1)}
    assert scale_of([0.1, 0.1, 0.2, 0.3, -4.1]) == {"value": "symlog", "linthresh": pytest.approx(0.1)}
    assert scale_of([0.0, 0.0, 0.0, 0.2, 0.3, 7.0]) == {"value": "symlog", "linthresh": pytest.approx(0.1)}
    assert scale_of([0.0, 0.0]) == {"value": "linear"}


def test_shortened_name_keeps_its_ends() -> None:
    assert shorten("wanda + cwl", 11) == "wanda + cwl"
    assert shorten("wanda + cwl", 10) == "wanda… cwl"
    assert shorten("wanda + cwl", 9) == "wand… cwl"


def test_thinned_labels_say_so() -> None:
    figure = new_figure(4, 3)
    axes = figure.subplots()
    axes.set_ylim(0, 99)
    names = make_languages(100)
    label_rows(axes.yaxis, names, 2.4)
    assert labels(axes.yaxis) == names[::5]
    assert list(axes.get_yticks()) == list(range(0, 100, 5))
    assert axes.get_ylabel() == "every 5th of 100 is labelled"
    assert_readable(figure, tick_texts(axes.yaxis))


def test_names_are_drawn_as_they_are() -> None:
    comparison = make_comparison(["$x^2$", "<sw>"], ["a $\\alpha$ & b"])
    picture = render(degradation_figure(comparison), "svg").decode()
    for text in ("$x^2$", "&lt;sw&gt;", "a $\\alpha$ &amp; b"):
        assert text in picture


@pytest.mark.parametrize("languages", [30, 40, 60, 150])
def test_no_label_of_the_correlation_is_cut_off(languages: int) -> None:
    names = make_languages(languages)
    figure = language_correlation_figure(torch.rand(2, languages, languages), names)
    for axis in (figure.axes[0].yaxis, figure.axes[0].xaxis):
        assert_readable(figure, tick_texts(axis))


def foreign_comparison(name: str) -> PerplexityComparison:
    return make_comparison(["en", "sw"], [name])


def test_fonts_are_chosen_that_have_the_characters() -> None:
    private = "\ue000"  # of the fonts that come with matplotlib, only one for mathematics has it
    figure = degradation_figure(foreign_comparison(f"a {private}"))
    render(figure, "png")
    (text,) = [each for each in figure.legends[0].get_texts() if private in each.get_text()]
    assert "STIXNonUnicode" in text.get_fontfamily()
    assert "Last Resort High-Efficiency" not in text.get_fontfamily()
    assert all("STIXNonUnicode" not in each.get_fontfamily() for each in figure.axes[0].get_yticklabels())


def make_font(path: Path, family: str, character: str) -> None:
    """A font with one character."""
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "one"])
    builder.setupCharacterMap({ord(character): "one"})
    builder.setupGlyf(dict.fromkeys([".notdef", "one"], TTGlyphPen(None).glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", "one"], (500, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


def test_fonts_that_are_newer_than_the_list_of_matplotlib_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken.ttf").write_text("no font")
    make_font(tmp_path / "new.ttf", "Brand New", "\U000e0200")
    monkeypatch.setattr(font_manager.fontManager, "ttflist", list(font_manager.fontManager.ttflist))
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(path) for path in sorted(tmp_path.iterdir())])
    figure = degradation_figure(foreign_comparison("a \U000e0200"))
    render(figure, "png")
    assert any("Brand New" in text.get_fontfamily() for text in figure.legends[0].get_texts())
    assert "No installed font" not in caplog.text


@pytest.mark.filterwarnings("error")
def test_characters_that_no_font_has_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        render(degradation_figure(foreign_comparison("a \U000e0101\U000f0000")), "png")
    assert [record.getMessage() for record in caplog.records if "No installed font has" in record.getMessage()][
        1:
    ] == []
    assert "\U000f0000" in caplog.text


def test_pictures_have_200_dots_per_inch() -> None:
    width, height = struct.unpack(">II", render(new_figure(4, 3), "png")[16:24])
    assert (width, height) == (800, 600)


def test_pictures_beside_each_other_give_a_name_one_colour() -> None:
    both, one = make_comparison(["en", "sw"], ["a", "b"]), make_comparison(["en", "sw"], ["b"])
    series = ["a", "b"]
    found = [degradation_figure(each, series).legends[0].legend_handles[-1].get_color() for each in (both, one)]
    assert found == [style(1)["color"]] * 2
