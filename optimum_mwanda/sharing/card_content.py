"""The content of a model card: fills the template with the values of a sparsity record and an evaluation."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..configuration import MWandaConfig
from ..evaluation.harness.comparison import HarnessComparison
from ..evaluation.report import PerplexityComparison, PerplexityReport
from ..modeling.architecture import CAUSAL
from ..record.schema import SparsityRecord
from ..values import SELF_WRITTEN, is_self_written
from .card_command import describe_command
from .card_experts import describe_experts
from .card_harness import harness_results, harness_table
from .card_settings import settings_that_apply
from .card_text import Markdown, clean, code_span, percent, render, table
from .card_update import TASK_NAME
from .languages import hub_language

TAGS = ("optimum-mwanda", "mwanda", "pruned", "sparse")
# The Hub has no task for models that map text to text in general.
_PIPELINES = {
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForImageTextToText": "image-text-to-text",
}


@dataclasses.dataclass(frozen=True)
class PrunedModelCard:
    """The values for the template of the card.

    Attributes:
        record: The sparsity record.
        settings: The settings in the record.
        repo_id: Repository of the pruned model; None if it has none.
        base_model: Repository of the dense model; None if it has none.
        license: `license`, `license_name` and `license_link` of the dense model, as far as known.
        comparison: Evaluation of the dense and this pruned model; None if there is none.
        harness: The same two models in lm-evaluation-harness; None if they were not run.
        plot: File name of the sparsity picture beside the card; None for a table instead.
        degradation_plot: File name of the picture of what every language loses; None for no picture.
        compressed: Whether the weights are stored compressed.
        auto_class: Name of the class of transformers that loads the model.
    """

    record: SparsityRecord
    settings: MWandaConfig
    repo_id: str | None = None
    base_model: str | None = None
    license: Mapping[str, str] = dataclasses.field(default_factory=dict)
    comparison: PerplexityComparison | None = None
    harness: HarnessComparison | None = None
    plot: str | None = None
    degradation_plot: str | None = None
    compressed: bool = False
    auto_class: str = CAUSAL

    @property
    def name(self) -> str:
        """Name of the pruned model."""
        return self.repo_id.rpartition("/")[2] if self.repo_id else f"{clean(self.record.model) or 'model'}-pruned"

    @property
    def base_location(self) -> str:
        """Where to load the dense model from."""
        return self.base_model or f"path/to/{self.record.model or 'model'}"

    def metadata(self) -> ModelCardData:
        """The YAML block; every string that it takes from the record is checked."""
        languages = list(self.record.languages)
        for evaluation in (self.comparison, self.harness):
            languages += evaluation.languages if evaluation else ()
        codes = sorted({code for code in map(hub_language, languages) if code is not None})
        results = self._results()
        return ModelCardData(
            language=codes or None,
            license=self.license.get("license"),
            license_name=self.license.get("license_name"),
            license_link=self.license.get("license_link"),
            base_model=self.base_model,
            base_model_relation=None if self.base_model is None else "finetune",
            library_name="transformers",
            pipeline_tag=_PIPELINES.get(self.auto_class),
            tags=list(TAGS),
            model_name=self.name if results else None,
            eval_results=results or None,
        )

    def to_card(self) -> ModelCard:
        """The card, filled in."""
        record, settings = self.record, self.settings.to_dict()
        applied = settings_that_apply(self.settings, record)
        base = f"[{self.base_model}](https://huggingface.co/{self.base_model})" if self.base_model else None
        command, needs_settings_file = describe_command(
            self.settings, record.languages, self.base_location, record.plan is not None
        )
        text = render(
            {
                "name": self.name if self.repo_id is None else Markdown(self.name),
                "base": Markdown(base) if base else record.model or Markdown("a local model"),
                "base_location": self.base_location,
                "location": self.repo_id or "path/to/this/model",
                "record": record,
                "settings": settings,
                "applied": applied,
                "updates_matrices": self.settings.updates_matrices,
                "settings_of": self.settings,
                "facts": self._facts(),
                "languages": table(
                    ["language", "tokens", "weight"],
                    [[name, each.tokens, percent(each.weight)] for name, each in record.languages.items()],
                ),
                "settings_table": table(["setting", "value"], list(applied.items())),
                "blocks": table(["block", "zeros"], [[block.name, percent(block.sparsity)] for block in record.blocks]),
                "plot": Markdown(self.plot) if self.plot else None,
                "degradation_plot": Markdown(self.degradation_plot) if self.degradation_plot else None,
                "command": command,
                "needs_settings_file": needs_settings_file,
                "compressed": self.compressed,
                "auto_class": Markdown(self.auto_class),
                "self_written": SELF_WRITTEN if SELF_WRITTEN in record.languages else None,
                "self_begun": any(is_self_written(name) for name in record.languages if name != SELF_WRITTEN),
                "experts": describe_experts(record.experts, self.settings),
                "harness": harness_table(self.harness) if self.harness else None,
                **self._evaluation(),
            }
        )
        return ModelCard(f"---\n{self.metadata().to_yaml()}\n---\n\n{text}")

    def _facts(self) -> Markdown:
        record, applied = self.record, settings_that_apply(self.settings, self.record)
        if record.plan is not None:
            applied = {**applied, "allocation": record.plan}
        sparsities = [block.sparsity for block in record.blocks]
        return table(
            ["", "value"],
            [
                [Markdown("criterion"), self.settings.criterion],
                [Markdown("pattern"), record.pattern],
                *(
                    [Markdown(name), applied[name]]
                    for name in ("group", "allocation", "calibration")
                    if name in applied and (name != "calibration" or record.languages)
                ),
                [Markdown("sparsity asked for"), percent(record.target_sparsity)],
                [Markdown("sparsity achieved"), percent(record.achieved_sparsity)],
                [Markdown("least sparse block"), percent(min(sparsities))],
                [Markdown("sparsest block"), percent(max(sparsities))],
                *(
                    [Markdown(f"error of the blocks' outputs {when} training, in the mean"), percent(error)]
                    for when, error in zip(("before", "after"), record.block_errors or (), strict=False)
                ),
                *([[Markdown("seed"), record.seed]] if "seed" in applied else []),
                [Markdown("optimum-mwanda"), record.library_version],
                [Markdown("torch"), record.versions["torch"]],
                [Markdown("transformers"), record.versions["transformers"]],
            ],
        )

    def _evaluation(self) -> dict[str, Any]:
        """The template's values that come from an evaluation."""
        found = self.comparison
        if found is None:
            return {"perplexity": None}
        (name,) = found.pruned
        return {
            "perplexity": Markdown(_escaped(found).to_markdown()),
            "sequence_length": found.dense.sequence_length,
            "confidence": Markdown(f"{100 * found.confidence:.3g} %"),
            "intervals": any(score.can_be_resampled for score in found.dense.scores.values()),
            "unseen": bool(found.unseen),
            "worst": found.worst(name),
        }

    def _results(self) -> list[EvalResult]:
        scores = [] if self.harness is None else harness_results(self.harness.pruned["pruned"])
        if self.comparison is None:
            return scores
        (report,) = self.comparison.pruned.values()
        figures = [
            (language, metric, value)
            for language, score in report.scores.items()
            for metric, value in (("perplexity", score.perplexity), ("bits_per_byte", score.bits_per_byte))
            if value is not None and math.isfinite(value)
        ]
        return [
            EvalResult(
                task_type="text-generation",
                task_name=TASK_NAME,
                dataset_type="unknown",
                dataset_name="Evaluation text",
                dataset_config=clean(language),
                metric_type=metric,
                metric_name=f"{metric.replace('_', ' ').capitalize()} ({clean(language)})",
                metric_value=round(value, 4),
            )
            for language, metric, value in figures
        ] + scores


def _escaped(report: PerplexityComparison) -> PerplexityComparison:
    """The same report with languages as inline code."""

    def cell(language: str) -> str:
        return code_span(language).replace("|", "\\|")

    def escape(one: PerplexityReport) -> PerplexityReport:
        return dataclasses.replace(one, scores={cell(name): score for name, score in one.scores.items()})

    pruned = {name: escape(one) for name, one in report.pruned.items()}
    seen = None if report.seen is None else [cell(name) for name in report.seen]
    return dataclasses.replace(report, dense=escape(report.dense), pruned=pruned, seen=seen)
