"""Parsing the sparsity record, which may come from anywhere. `docs/record.md` names every field."""

import copy
import dataclasses
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from ..storage.files import bounded_copy
from ..utils import abridged, as_percent
from ..values import is_self_written
from .counts import read_counts
from .fields import FIELDS, is_name, read_chosen, read_experts, read_pruning, require
from .parts import RecordedBlock, RecordedExperts, RecordedMatrix, RecordedPruning

RECORD_KEY = "mwanda_config"
MAX_HISTORY = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparsityRecord(RecordedPruning):
    """What a pruned model's config says about its pruning; `print` shows a summary.

    `sparsity_record` reads it. It has the attributes of `RecordedPruning`, and:

    Attributes:
        blocks: Every pruned block.
        matrices: Every pruned matrix, block by block and sorted by path.
        plan: How the sparsities were found, if not by the allocation of the settings: "search", for example; else None.
        chosen: What settings were found by trying before the pruning, to how; empty if none were.
        experts: How calibration reached the experts of a mixture; None for other models and if no data was used.
        history: Earlier prunings of the same model, oldest first.
    """

    blocks: tuple[RecordedBlock, ...]
    matrices: tuple[RecordedMatrix, ...] = dataclasses.field(repr=False)
    plan: str | None
    chosen: Mapping[str, str]
    experts: RecordedExperts | None
    history: tuple[RecordedPruning, ...] = dataclasses.field(repr=False)
    # Kept whole, because it may hold keys that only another version knows.
    _document: dict[str, Any] = dataclasses.field(repr=False)

    @classmethod
    def parse(cls, value: Any) -> "SparsityRecord":
        """Checks a record that may come from anywhere; keys that this version does not know are kept.

        Args:
            value: What a config holds under `mwanda_config`.

        Returns:
            The record, which has every field of `docs/record.md`, has a bounded size and is consistent.

        Raises:
            ValueError: If the value is anything else.
        """
        document = bounded_copy(value)
        require(isinstance(document, dict), "it", document, "a JSON object")
        fields = read_pruning(document, "")
        history = _read_history(document.get("history"))
        experts = read_experts(document.get("experts"), fields["languages"])
        blocks, matrices = read_counts(document)
        plan = document.get("plan")
        require(plan is None or is_name(plan), "plan", plan, "a name")
        chosen = read_chosen(document.get("chosen", {}))
        found = {"blocks": blocks, "matrices": matrices, "plan": plan, "chosen": chosen}
        found |= {"experts": experts, "history": history}
        return cls(**fields, **found, _document=document)

    def to_dict(self) -> dict[str, Any]:
        """A copy of the record as plain JSON values, as it was parsed."""
        return copy.deepcopy(self._document)

    def next_history(self) -> list[dict[str, Any]]:
        """The earlier prunings and this one, as the history in the record of the next pruning."""
        document = self.to_dict()
        kept = ("schema", *FIELDS, "plan", "chosen", "training")
        return [*document["history"], {field: document[field] for field in kept if field in document}][-MAX_HISTORY:]

    @property
    def method(self) -> str:
        """Criterion, pattern, group, allocation and, where text was used, calibration, in a few words on one line."""
        names = ("criterion", "group", "allocation", "calibration")
        # A record need not have every setting: it may come from another version.
        criterion, group, allocation, calibration = (_shown(self.settings.get(name, "unknown")) for name in names)
        parts = [
            criterion,
            f"{self.pattern} per {group}" if self.pattern == "unstructured" else self.pattern,
            f"{allocation if self.plan is None else _shown(self.plan)} allocation",
            *([f"{calibration} calibration"] if self.languages else []),
        ]
        return ", ".join(parts)

    @property
    def block_errors(self) -> tuple[float, float] | None:
        """The errors of the blocks' outputs before and after they were trained, in the mean; None if they were not."""
        found = [block.reconstruction for block in self.blocks if block.reconstruction is not None]
        if not found:
            return None
        return fmean(each.before for each in found), fmean(each.after for each in found)

    def __str__(self) -> str:
        versions = ", ".join(f"{_shown(name)} {_shown(version)}" for name, version in self.versions.items())
        languages = abridged(
            (
                f"{_shown(name)} ({'written by the model itself, ' if is_self_written(name) else ''}"
                f"{language.tokens:,} tokens, weight {language.weight:.3f})"
                for name, language in self.languages.items()
            ),
            40,
        )
        lines = [
            f"{self.achieved_sparsity:.2%} of the weights in {len(self.blocks)} blocks are zero, and "
            f"{self.target_sparsity:.2%} were asked for ({self.method}).",
            f"{_shown(self.model) or 'The model'} was pruned by optimum-mwanda {_shown(self.library_version)} "
            f"({versions}).",
            f"Calibrated on {languages}." if languages else "No calibration text was used.",
        ]
        lines += [f"Found by trying: {_shown(how)}." for how in self.chosen.values()]
        if self.block_errors is not None:
            before, after = map(as_percent, self.block_errors)
            lines.append(f"Training took the error of the outputs of a block from {before} to {after}, in the mean.")
        for training in self.training:
            lines.append(f"Trained afterwards for {training.steps:,} steps ({_shown(training.recipe)}).")
        if self.history:
            lines.append(f"Earlier prunings of the model: {len(self.history)}.")
        return "\n".join(lines)


def _read_history(history: Any) -> tuple[RecordedPruning, ...]:
    is_legal = isinstance(history, list) and len(history) <= MAX_HISTORY
    require(is_legal, "history", history, f"a list of at most {MAX_HISTORY} earlier records")
    prunings = []
    for index, entry in enumerate(history):
        require(isinstance(entry, dict), f"history[{index}]", entry, "a JSON object")
        prunings.append(RecordedPruning(**read_pruning(entry, f"history[{index}].")))
    return tuple(prunings)


def _shown(value: Any) -> str:
    """A value on one line, without control characters for a terminal: a record may come from anywhere."""
    text = str(value)
    return text if text.isprintable() else ascii(text)
