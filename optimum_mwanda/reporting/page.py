"""The HTML report: sortable tables and pictures in one file that needs no network."""

import base64
import dataclasses
import hashlib
import importlib.resources
import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup

from ..calibration.statistics import CalibrationStatistics
from ..evaluation.changes import METRICS
from ..evaluation.harness.comparison import HarnessComparison
from ..evaluation.report import PerplexityComparison, PerplexityReport
from ..record.schema import SparsityRecord
from ..storage.outputs import write_bytes
from ..utils import abridged
from .page_tables import (
    Table,
    calibration_table,
    correlation_table,
    curve_table,
    harness_tables,
    language_table,
    score_table,
    settings_table,
    sparsity_table,
    summary_table,
)
from .plots import CurvePoint
from .plots.activations import block_correlation_figure, language_activity_figure, language_correlation_figure
from .plots.curves import sparsity_curves_figure
from .plots.degradation import degradation_figure
from .plots.drawing import render
from .plots.profiles import Blocks, group_by_block, pairwise_correlation
from .plots.sparsity import block_sparsity_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture inside the page.

    Attributes:
        text: What it shows.
        address: Its bytes, as a `data:` address.
    """

    text: str
    address: str


@dataclasses.dataclass
class Section:
    """A part of the page: a sentence, then tables and pictures in reading order."""

    title: str
    text: str
    parts: list[Table | Picture] = dataclasses.field(default_factory=list)

    def draw(self, text: str, figure: "Figure") -> None:
        """Adds a picture."""
        # As an image, not as elements of the page, so that its ids and styles cannot clash with those of another.
        data = base64.b64encode(render(figure, "svg")).decode()
        self.parts.append(Picture(text, f"data:image/svg+xml;base64,{data}"))


def write_html_report(
    path: str | os.PathLike[str],
    results: PerplexityComparison | PerplexityReport,
    record: SparsityRecord | None = None,
    statistics: CalibrationStatistics | None = None,
    *,
    blocks: Blocks | None = None,
    curves: Mapping[str, Sequence[CurvePoint]] | None = None,
    harness: HarnessComparison | None = None,
    facets: Mapping[str, PerplexityComparison] | None = None,
    title: str | None = None,
) -> None:
    """Writes one HTML file that works offline, with sortable tables and the pictures of `plots`.

    Without matplotlib, the page has no pictures and says so. Equal arguments give equal bytes.

    Args:
        path: File to write.
        results: What was measured: pruned models against their dense original, or one model.
        record: Sparsity record of the pruned model, to show its sparsity by block and its settings.
        statistics: Result of the calibration, to show how languages compare inside the model.
        blocks: Block to the names of its matrices, for the statistics; None to tell them by name.
        curves: Name of a criterion to its points, to show what each sparsity costs.
        harness: Scores of lm-evaluation-harness, to show how every benchmark changed.
        facets: Title to the part of the results that a picture of its own shows, with a colour for each name; None for
            one picture of all.
        title: Heading; None to name the model.
    """
    comparison = PerplexityComparison(results, {}) if isinstance(results, PerplexityReport) else results
    model = comparison.dense.model or "a model"
    draw = importlib.util.find_spec("matplotlib") is not None
    sections = [_results(comparison, facets, draw)]
    if harness is not None:
        sections.append(_benchmarks(harness))
    if curves:
        sections.append(_curves(curves, draw))
    if record is not None:
        sections.append(_sparsity(record, draw))
    if statistics is not None:
        sections.append(_calibration(statistics, blocks, draw))
    heading = f"What pruning changes in {model}" if comparison.pruned else f"{model}, per language"
    page = _render(title or heading, _facts(comparison, record), sections, draw)
    write_bytes(Path(path), page.encode())


def _results(
    comparison: PerplexityComparison, facets: Mapping[str, PerplexityComparison] | None, draw: bool
) -> Section:
    section = Section("Languages", "Perplexities compare models, bits per byte compare languages and tokenizers too.")
    if not comparison.pruned:
        section.parts.append(score_table(comparison.dense))
        return section
    section.text += (
        " A factor above 1, or an increase above 0 %, is what pruning costs; in brackets is the "
        f"{100 * comparison.confidence:g} % confidence interval, if there was enough text for one."
    )
    changes = {
        metric: {name: comparison.change(name, metric=metric) for name in comparison.pruned} for metric in METRICS
    }
    section.parts += [summary_table(metric, changes[metric]) for metric in METRICS]
    series = list(dict.fromkeys(name for part in (facets or {}).values() for name in part.pruned))
    for name, part in (facets or {"": comparison}).items() if draw else ():
        text = "Increase of the log-perplexity in every language" + (f", {name}" if name else "")
        section.draw(text, degradation_figure(part, series or None))
    section.parts.append(language_table(comparison, changes))
    return section


def _benchmarks(harness: HarnessComparison) -> Section:
    name = f"lm-evaluation-harness {harness.dense.version}".strip()
    text = f"Scores of {name}, with ± their standard errors if it gives any."
    if harness.pruned:
        text += " A change is the score of the pruned model minus that of the dense one."
    return Section("Benchmarks", text, [*harness_tables(harness)])


def _curves(curves: Mapping[str, Sequence[CurvePoint]], draw: bool) -> Section:
    section = Section("Sparsity", "What each sparsity costs, in the mean over languages and in the worst one.")
    if draw:
        section.draw("Increase of the log-perplexity at every sparsity", sparsity_curves_figure(curves))
    section.parts.append(curve_table(curves))
    return section


def _sparsity(record: SparsityRecord, draw: bool) -> Section:
    section = Section("Blocks", "The share of zeros in the matrices of every block.")
    if draw:
        section.draw("Share of zeros in every block", block_sparsity_figure(record))
    section.parts += [sparsity_table(record), settings_table(record)]
    return section


def _calibration(statistics: CalibrationStatistics, blocks: Blocks | None, draw: bool) -> Section:
    section = Section("Calibration", "How the activations of languages compare inside the dense model.")
    blocks = group_by_block(list(statistics.weights)) if blocks is None else blocks
    section.parts.append(calibration_table(statistics))
    if draw:
        section.draw("Activation of every language in every block", language_activity_figure(statistics, blocks))
    if len(statistics.languages) > 1:
        correlations = pairwise_correlation(statistics, blocks)
        if draw:
            figure = block_correlation_figure(correlations, list(blocks))
            section.draw("Cross-lingual correlation of every block", figure)
            figure = language_correlation_figure(correlations, statistics.languages)
            section.draw("Correlation between languages", figure)
        section.parts.append(correlation_table(correlations, statistics.languages, list(blocks)))
    return section


def _facts(comparison: PerplexityComparison, record: SparsityRecord | None) -> list[tuple[str, str]]:
    facts = [
        ("languages", f"{len(comparison.languages)}"),
        ("tokens per window", f"{comparison.dense.sequence_length}"),
    ]
    if comparison.pruned:
        facts.append(("pruned models", ", ".join(comparison.pruned)))
    if comparison.seen is not None:
        facts.append(("not calibrated on", abridged(comparison.unseen, 20) or "none"))
    if record is not None:
        facts += [
            ("zeros", f"{100 * record.achieved_sparsity:.2f} % of the prunable weights"),
            ("pattern", record.pattern),
            ("pruned by", f"optimum-mwanda {record.library_version}"),
        ]
    return facts


def _render(title: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section], has_pictures: bool) -> str:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    script = _asset("report.js")
    # The page may run only this script and load nothing, because names in a record or dataset are not trusted.
    digest = base64.b64encode(hashlib.sha256(f"\n{script}\n".encode()).digest()).decode()
    return environment.from_string(_asset("report.html.jinja")).render(
        title=title,
        facts=facts,
        sections=sections,
        has_pictures=has_pictures,
        style=Markup(_asset("report.css")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )


def _asset(name: str) -> str:
    return importlib.resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")
