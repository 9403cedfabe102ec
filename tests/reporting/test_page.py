"""The HTML report, read as a file and in a real browser."""

import dataclasses
import importlib.util
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from optimum_mwanda import PerplexityComparison, PerplexityReport
from optimum_mwanda.evaluation.bootstrap import Estimate
from optimum_mwanda.evaluation.harness.comparison import HarnessComparison
from optimum_mwanda.evaluation.harness.results import HarnessReport, HarnessScore
from optimum_mwanda.reporting.page import write_html_report
from optimum_mwanda.reporting.plots import CurvePoint
from tests.record.examples import record_of
from tests.reporting.pictured import make_comparison, make_languages, make_statistics, random_statistics

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

LANGUAGES = ["de", "en", "fr", "sw"]
RECORD = record_of(
    {"model.layers.2": 0.6, "model.layers.10": 0.5},
    library_version="1.2.3",
    settings={"criterion": "mwanda", "sparsity": 0.55, "include": None},
)
HOSTILE = (
    "<script>document.title = 'taken'</script><img src='http://example.com/x.png' onerror=\"document.title='taken'\">"
)
VOID = {"meta", "link", "img"}


def comparison() -> PerplexityComparison:
    """Losses in no order by name; the text of one language has no known length."""
    made = make_comparison(LANGUAGES, ["mwanda", "wanda"], ["en", "sw"])

    def without_bytes(report: PerplexityReport) -> PerplexityReport:
        score = report.scores["fr"]
        windows = dataclasses.replace(score.windows, bytes=None)
        return dataclasses.replace(
            report, scores={**report.scores, "fr": dataclasses.replace(score, bytes=None, windows=windows)}
        )

    pruned = {name: without_bytes(report) for name, report in made.pruned.items()}
    return PerplexityComparison(without_bytes(made.dense), pruned, made.seen)


def harness(*names: str, languages: tuple[str, ...] = ("sw", "et", "th")) -> HarnessComparison:
    """Accuracies 0.5, 0.75 and 1 become 0.25, 0.25 and 1; the perplexity, which rises, has no standard error."""

    def report(*accuracies: float) -> HarnessReport:
        scores = [
            HarnessScore("xcopa", language, "acc", accuracy, 0.03, 500, True, "cambridgeltl/xcopa", "test")
            for language, accuracy in zip(languages, accuracies, strict=False)
        ]
        single = HarnessScore("lambada", "", "perplexity", 9 / accuracies[0], None, 20, False, "lambada", "test")
        return HarnessReport((*scores, single), "model", "0.4.13")

    return HarnessComparison(report(0.5, 0.75, 1.0), {name: report(0.25, 0.25, 1.0) for name in names})


def write_full_report(path: Path) -> None:
    points = [CurvePoint.of(sparsity, comparison(), "mwanda") for sparsity in (0.5, 0.6)]
    statistics = random_statistics(3, 2)
    write_html_report(
        path, comparison(), RECORD, statistics, curves={"mwanda": points}, harness=harness("mwanda", "wanda")
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with all that it can show."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_full_report(path)
    return path


class Outline(HTMLParser):
    """Checks that elements close in the order in which they opened, and keeps text and addresses."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.addresses: list[str] = []
        self.seen: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_page_is_well_formed_and_refers_to_nothing_outside(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    outline = Outline(page)
    assert outline.seen.count("img") == 6
    assert all(address.startswith("data:") for address in outline.addresses)
    assert not re.search(r"url\(|@import|https?://", page)


def test_equal_results_give_equal_files(report: Path, tmp_path: Path) -> None:
    write_full_report(tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == report.read_bytes()


def test_without_matplotlib_the_tables_are_there_and_the_page_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    write_full_report(tmp_path / "report.html")
    outline = Outline((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "pip install matplotlib" in outline.texts
    assert "img" not in outline.seen
    assert {"sw", "model.layers.10", "perplexity", "unseen"} <= set(outline.texts)


def test_one_model_is_reported_without_a_comparison(tmp_path: Path) -> None:
    write_html_report(tmp_path / "report.html", comparison().dense)
    outline = Outline((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "org/model, per language" in outline.texts
    assert "factor" not in outline.texts
    score = comparison().dense.scores["sw"]
    errors = score.standard_errors
    assert {
        f"{score.nll:.4f} ± {errors['nll']:.4f}",
        f"{score.perplexity:.2f} ± {errors['perplexity']:.2f}",
        f"{score.bits_per_byte:.4f} ± {errors['bits_per_byte']:.4f}",
    } <= set(outline.texts)


def test_standard_errors_that_are_not_known_are_left_out(tmp_path: Path) -> None:
    report = comparison().dense
    scores = {name: dataclasses.replace(score, windows=None) for name, score in report.scores.items()}
    write_html_report(tmp_path / "report.html", dataclasses.replace(report, scores=scores))
    texts = Outline((tmp_path / "report.html").read_text(encoding="utf-8")).texts
    assert f"{scores['sw'].nll:.4f}" in texts


def test_figures_of_the_tables_are_those_of_the_results(report: Path) -> None:
    texts = Outline(report.read_text(encoding="utf-8")).texts
    results = comparison()
    change, bits = results.change("wanda"), results.change("wanda", metric="bits_per_byte")

    def factor(estimate: Estimate) -> str:
        return "{} [{}, {}]".format(*(f"{2.718281828459045**x:.3f}" for x in estimate))

    def percent(estimate: Estimate) -> str:
        return "{} [{}, {}]".format(*(f"{100 * x:.2f}" for x in estimate))

    for each, shown in ((change, factor), (bits, percent)):
        worst = max(LANGUAGES, key=lambda language, each=each: each.languages[language].value)
        assert f"{worst}: {shown(each.summary['worst'])}" in texts
        assert {shown(each.summary[key]) for key in ("mean", "seen", "unseen", "deviation")} <= set(texts)
        assert shown(each.languages["de"]) in texts
    assert f"{results.pruned['wanda'].scores['de'].bits_per_byte:.4f}" in texts
    assert "60.00" in texts
    assert "null" in texts


def test_scores_of_the_harness_have_a_section(report: Path, tmp_path: Path) -> None:
    texts = Outline(report.read_text(encoding="utf-8")).texts
    assert "Benchmarks" in texts
    assert any("lm-evaluation-harness 0.4.13" in text for text in texts)
    assert {"0.7500 ± 0.0300", "0.2500 ± 0.0300", "-0.5000", "18.0000", "36.0000", "+18.0000"} <= set(texts)
    assert "**mean**" not in texts
    write_html_report(tmp_path / "report.html", comparison())
    assert "Benchmarks" not in Outline((tmp_path / "report.html").read_text(encoding="utf-8")).texts


def test_scores_of_one_language_have_no_mean(tmp_path: Path) -> None:
    write_html_report(tmp_path / "report.html", comparison().dense, harness=harness(languages=("sw",)))
    texts = Outline((tmp_path / "report.html").read_text(encoding="utf-8")).texts
    assert "0.5000 ± 0.0300" in texts
    assert {"over languages", "change"}.isdisjoint(texts)


def test_correlation_needs_no_second_language(tmp_path: Path) -> None:
    write_html_report(tmp_path / "report.html", comparison(), statistics=random_statistics(1, 2))
    outline = Outline((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert outline.seen.count("img") == 2


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Browser"]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("there is no Chromium on this machine to open the report in")
    api = pytest.importorskip("playwright.sync_api", reason="playwright, which clicks in the browser, is not installed")
    flags = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=flags, timeout=120_000)
        yield launched
        launched.close()


class Visit:
    """A page with what it asked for and what it complained about."""

    def __init__(self, browser: "Browser", path: Path, **options: Any) -> None:
        self.page: Page = browser.new_page(**options)
        self.address = path.as_uri()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(self.address)

    def assert_quiet(self) -> None:
        assert [url for url in self.requests if not url.startswith("data:")] == [self.address]
        assert self.complaints == []


def first_column(table: "Locator") -> list[str]:
    return table.locator("tbody th").all_text_contents()


def test_click_on_a_head_sorts_the_table(browser: "Browser", report: Path) -> None:
    visit = Visit(browser, report)
    results = comparison()
    table = visit.page.locator("table", has_text="Every language. The factor")
    heads = table.locator("thead tr").last.get_by_role("button")
    assert first_column(table) == LANGUAGES

    by_factor = sorted(LANGUAGES, key=lambda each: results.log_ratio("mwanda", each))
    assert by_factor != LANGUAGES
    head = heads.get_by_text("factor").first
    head.click()
    assert first_column(table) == by_factor
    head.click()
    assert first_column(table) == by_factor[::-1]
    assert table.locator("th[aria-sort]").evaluate_all("all => all.map(each => each.ariaSort)") == ["descending"]

    by_size = sorted(LANGUAGES, key=lambda each: results.dense.scores[each].bits_per_byte or 99)
    head = heads.get_by_text("bits per byte").first
    head.click()
    assert first_column(table) == by_size
    assert by_size[-1] == "fr"
    head.click()
    assert first_column(table) == [*by_size[-2::-1], "fr"], "what is not known stays below"

    heads.get_by_text("calibrated on").click()
    assert set(first_column(table)[:2]) == {"de", "fr"}
    heads.get_by_text("language").press("Enter")
    assert first_column(table) == LANGUAGES
    visit.assert_quiet()


def test_numbers_in_names_sort_as_numbers_and_tables_by_themselves(browser: "Browser", report: Path) -> None:
    visit = Visit(browser, report)
    blocks = visit.page.locator("table", has_text="Every pruned block")
    others = visit.page.locator("table", has_not_text="Every pruned block")
    before = others.all_text_contents()
    blocks.get_by_text("zeros (%)").click()
    assert first_column(blocks) == ["model.layers.10", "model.layers.2"]
    blocks.get_by_role("button", name="block").click()
    assert first_column(blocks) == ["model.layers.2", "model.layers.10"]
    assert others.all_text_contents() == before
    assert len(before) == 9


def test_scores_of_the_harness_can_be_sorted(browser: "Browser", report: Path) -> None:
    visit = Visit(browser, report)
    scores = visit.page.locator("table", has_text="Every score")
    languages = scores.locator("tbody td:nth-child(3)")
    assert languages.all_text_contents() == ["sw", "et", "th", "–"]
    scores.get_by_role("button", name="change").first.click()
    assert languages.all_text_contents() == ["et", "sw", "th", "–"]

    summary = visit.page.locator("table", has_text="each counted equally")
    kinds = summary.locator("tbody td:nth-child(3)")
    assert kinds.all_text_contents() == ["mean", "worst"]
    worst = summary.locator("tbody tr").last.locator("td").all_text_contents()
    assert worst == ["acc", "worst", "", "et", "-0.5000", "et", "-0.5000"]
    summary.get_by_role("button", name="change").first.click()
    assert kinds.all_text_contents() == ["worst", "mean"]
    summary.get_by_role("button", name="mwanda").click()
    assert kinds.all_text_contents() == ["mean", "worst"], "the language that suffers most is no figure"
    visit.assert_quiet()


@pytest.mark.parametrize(("languages", "models", "blocks"), [(2, 1, 2), (100, 2, 126)])
def test_pictures_load_offline(browser: "Browser", tmp_path: Path, languages: int, models: int, blocks: int) -> None:
    names = ["mwanda", "wanda"][:models]
    results = make_comparison(make_languages(languages), names)
    write_html_report(tmp_path / "report.html", results, RECORD, random_statistics(languages, blocks))
    visit = Visit(browser, tmp_path / "report.html", offline=True)
    widths = visit.page.locator("img").evaluate_all("all => all.map(each => each.naturalWidth)")
    assert len(widths) == 5
    assert all(width > 100 for width in widths)
    assert visit.page.evaluate("document.compatMode") == "CSS1Compat"
    assert visit.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "only tables may scroll"
    visit.assert_quiet()


def test_hostile_names_are_shown_and_not_run(browser: "Browser", tmp_path: Path) -> None:
    made = make_comparison(["en", HOSTILE], [HOSTILE], [HOSTILE])
    results = dataclasses.replace(made, dense=dataclasses.replace(made.dense, model=HOSTILE))
    record = dataclasses.replace(RECORD, settings={HOSTILE: HOSTILE}, pattern=HOSTILE, library_version=HOSTILE)
    statistics = make_statistics(["en", HOSTILE], {"layers.0.a": torch.rand(2, 8)})
    scores = harness(HOSTILE, languages=(HOSTILE, "et"))
    write_html_report(tmp_path / "report.html", results, record, statistics, harness=scores)
    visit = Visit(browser, tmp_path / "report.html")
    assert visit.page.title() == f"What pruning changes in {HOSTILE}"
    assert HOSTILE in first_column(visit.page.locator("table", has_text="Every language. The factor"))
    assert HOSTILE in visit.page.locator("table", has_text="Every score").locator("td").all_text_contents()
    visit.assert_quiet()


def test_page_runs_no_script_but_its_own(browser: "Browser", tmp_path: Path) -> None:
    write_html_report(tmp_path / "report.html", comparison())
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    (tmp_path / "report.html").write_text(
        page.replace("<main>", "<main><script>document.title = 'taken'</script>"), encoding="utf-8"
    )
    visit = Visit(browser, tmp_path / "report.html")
    assert visit.page.title() == "What pruning changes in org/model"
    assert "Content Security Policy" in " ".join(visit.complaints)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_in_the_dark(browser: "Browser", report: Path, scheme: str) -> None:
    page = Visit(browser, report, color_scheme=scheme).page
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(paper) > 0.5) is (scheme == "light")
    for part in ("h1", "dt", "caption", "tbody td", "th button"):
        ink = page.locator(part).first.evaluate("each => getComputedStyle(each).color")
        lighter, darker = sorted((luminance(ink), luminance(paper)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) > 4.5, part


def luminance(color: str) -> float:
    """Relative luminance of an `rgb(…)` colour, as WCAG 2 defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
