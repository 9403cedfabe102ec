"""What a model card says: the values of a sparsity record and of an evaluation, put into the template."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..configuration import CONFIG_NAME, MWandaConfig
from ..evaluation.report import PerplexityComparison, PerplexityReport
from ..values import plain
from .card_text import Markdown, clean, code_span, percent, render, shell_word, table
from .card_update import TASK_NAME
from .languages import hub_language

TAGS = ("optimum-mwanda", "mwanda", "pruned", "sparse")


@dataclasses.dataclass(frozen=True)
class PrunedModelCard:
    """What the template of the card is filled with.

    Attributes:
        record: The sparsity record, checked.
        settings: The settings in the record.
        repo_id: Repository of the pruned model; None if it has none.
        base_model: Repository of the dense model; None if it has none.
        license: `license`, `license_name` and `license_link` of the dense model, as far as they are known.
        comparison: The dense and this pruned model, evaluated; None if they were not.
        plot: File name of the plot beside the card; None for a table in its place.
        compressed: Whether the weights are stored compressed.
    """

    record: Mapping[str, Any]
    settings: MWandaConfig
    repo_id: str | None = None
    base_model: str | None = None
    license: Mapping[str, str] = dataclasses.field(default_factory=dict)
    comparison: PerplexityComparison | None = None
    plot: str | None = None
    compressed: bool = False

    @property
    def name(self) -> str:
        """Name of the pruned model."""
        return self.repo_id.rpartition("/")[2] if self.repo_id else f"{clean(self.record['model']) or 'model'}-pruned"

    @property
    def base_location(self) -> str:
        """What to load the dense model from."""
        return self.base_model or f"path/to/{self.record['model'] or 'model'}"

    def metadata(self) -> ModelCardData:
        """The YAML block: no string in it is taken from the record unchecked."""
        languages = [*self.record["languages"], *(self.comparison.languages if self.comparison else ())]
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
            pipeline_tag="text-generation",
            tags=list(TAGS),
            model_name=self.name if results else None,
            eval_results=results or None,
        )

    def to_card(self) -> ModelCard:
        """The card, filled in."""
        record, settings = self.record, self.settings.to_dict()
        base = f"[{self.base_model}](https://huggingface.co/{self.base_model})" if self.base_model else None
        blocks = zip(record["blocks"]["names"], record["blocks"]["sparsity"], strict=True)
        text = render(
            {
                "name": self.name if self.repo_id is None else Markdown(self.name),
                "base": Markdown(base) if base else record["model"] or Markdown("a local model"),
                "base_location": self.base_location,
                "location": self.repo_id or "path/to/this/model",
                "record": record,
                "settings": settings,
                "facts": self._facts(),
                "languages": table(
                    ["language", "tokens", "weight"],
                    [[name, part["tokens"], percent(part["weight"])] for name, part in record["languages"].items()],
                ),
                "settings_table": table(["setting", "value"], list(settings.items())),
                "blocks": table(["block", "zeros"], [[name, percent(share)] for name, share in blocks]),
                "plot": Markdown(self.plot) if self.plot else None,
                **self._command(),
                "compressed": self.compressed,
                **self._evaluation(),
            }
        )
        return ModelCard(f"---\n{self.metadata().to_yaml()}\n---\n\n{text}")

    def _facts(self) -> Markdown:
        record = self.record
        return table(
            ["", "value"],
            [
                [Markdown("criterion"), self.settings.criterion],
                [Markdown("pattern"), record["pattern"]],
                [Markdown("allocation"), self.settings.allocation],
                [Markdown("sparsity asked for"), percent(record["target_sparsity"])],
                [Markdown("sparsity achieved"), percent(record["achieved_sparsity"])],
                [Markdown("least sparse block"), percent(min(record["blocks"]["sparsity"]))],
                [Markdown("sparsest block"), percent(max(record["blocks"]["sparsity"]))],
                [Markdown("seed"), record["seed"]],
                [Markdown("optimum-mwanda"), record["library_version"]],
                [Markdown("torch"), record["versions"]["torch"]],
                [Markdown("transformers"), record["versions"]["transformers"]],
            ],
        )

    def _command(self) -> dict[str, Any]:
        """The command line that prunes with the settings, and whether it reads some of them from their file."""
        values = {name: _words(value) for name, value in self._settings_to_name().items()}
        flags = [_flag(name, words) for name, words in values.items() if words]
        needs_file = None in flags
        words = [
            f"optimum-cli mwanda prune {shell_word(self.base_location)} pruned",
            *(["--dataset calibration.jsonl"] if self.record["languages"] else []),
            *([f"--config {CONFIG_NAME}"] if needs_file else []),
            *(flag for flag in flags if flag is not None),
        ]
        return {"command": Markdown(" ".join(words)), "needs_settings_file": needs_file}

    def _settings_to_name(self) -> dict[str, Any]:
        """The settings that a command line has to name, in its order."""
        defaults = {field.name: plain(field.default) for field in dataclasses.fields(MWandaConfig)}
        settings = self.settings.to_dict()
        # Naming the languages that were found keeps out others that the dataset may hold by now.
        settings["languages"] = settings["languages"] or list(self.record["languages"])
        first = ("sparsity", "criterion", "pattern", "allocation")
        last = ("languages", "seed")
        changed = [name for name, value in settings.items() if value != defaults[name]]
        return {name: settings[name] for name in [*first, *(n for n in changed if n not in first + last), *last]}

    def _evaluation(self) -> dict[str, Any]:
        """The part of the template's values that an evaluation fills."""
        found = self.comparison
        if found is None:
            return {"perplexity": None}
        (name,) = found.pruned
        return {
            "perplexity": Markdown(_escaped(found).to_markdown()),
            "sequence_length": found.dense.sequence_length,
            "unseen": bool(found.unseen),
            "worst": found.worst(name),
        }

    def _results(self) -> list[EvalResult]:
        if self.comparison is None:
            return []
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
        ]


def _words(value: Any) -> list[str]:
    """The words that follow the flag of a setting."""
    if isinstance(value, Mapping):
        return [f"{key}={entry!r}" for key, entry in value.items()]
    return [str(entry) for entry in (value if isinstance(value, list) else [value])]


def _flag(name: str, words: list[str]) -> str | None:
    """A setting as a flag with its words; None if a command line cannot say it, or not on one visible line."""
    flag = "--" + name.replace("_", "-")
    if any(clean(word) != word or (name == "language_weights" and word.startswith("=")) for word in words):
        return None
    if not any(word.startswith("-") for word in words):
        return " ".join([flag, *map(shell_word, words)])
    # A word that looks like a flag has to be joined to its own flag, which then takes no second word.
    return f"{flag}={shell_word(words[0])}" if len(words) == 1 else None


def _escaped(report: PerplexityComparison) -> PerplexityComparison:
    """The same report with languages as inline code."""

    def cell(language: str) -> str:
        return code_span(language).replace("|", "\\|")

    def escape(one: PerplexityReport) -> PerplexityReport:
        return dataclasses.replace(one, scores={cell(name): score for name, score in one.scores.items()})

    pruned = {name: escape(one) for name, one in report.pruned.items()}
    return PerplexityComparison(escape(report.dense), pruned, report.seen and [cell(name) for name in report.seen])
