"""Model cards of pruned models: what was done, what it costs in every language, and what it does not offer."""

import dataclasses
import importlib.util
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import PreTrainedModel

from ..configuration import MWandaConfig
from ..evaluation.harness.comparison import HarnessComparison
from ..evaluation.report import PerplexityComparison
from ..modeling.architecture import auto_class
from ..record.schema import SparsityRecord
from ..record.verification import sparsity_record
from ..reporting.plots import plot_block_sparsity, plot_degradation
from ..storage.files import checkpoint_folder, own_file, read_config
from ..storage.outputs import whole_file
from ..utils import abridged
from .card_content import PrunedModelCard
from .card_license import hub_license, local_license
from .card_text import clean
from .card_update import update_card
from .names import CARD_NAME, DEGRADATION_PLOT, REPO_ID, SPARSITY_PLOT

Source = PreTrainedModel | SparsityRecord | Mapping[str, Any] | str | os.PathLike[str]


def create_card(
    model_or_record: Source,
    *,
    repo_id: str | None = None,
    report: PerplexityComparison | None = None,
    harness: HarnessComparison | None = None,
    base_model: str | None = None,
    plot: str | None = None,
    degradation_plot: str | None = None,
    compressed: bool = False,
    existing: str | None = None,
) -> ModelCard:
    """Writes the card of a pruned model.

    The licence is that of the dense model. It is looked up on the card of `base_model` if that is given, then in the
    folder that the model was loaded from, then on the card of the model in the record. If there is none, the card names
    none.

    Args:
        model_or_record: A pruned model, its record (`sparsity_record`, or the dict in its config), or a folder or
            repository with a pruned model.
        repo_id: Repository that the model goes to.
        report: The dense model and this pruned model, evaluated on the same text.
        harness: The same two models in lm-evaluation-harness.
        base_model: Repository of the dense model. None: what the record says, if that has the form of a repository.
        plot: File name of a sparsity picture beside the card, as `save_card` makes it. None: a table instead.
        degradation_plot: File name of a picture of what every language loses, as `save_card` makes it from a `report`.
            None: no picture.
        compressed: Whether the weights are stored compressed.
        existing: Content of a card to update. Only our section is replaced, and the metadata is merged.

    Returns:
        The card: `print` it, or `save` it.

    Raises:
        ValueError: If the model has no record or a malformed one, the report is not about one pruned model, or the
            existing card is damaged.
    """
    content = describe(model_or_record, report, base_model, harness)
    content = dataclasses.replace(content, repo_id=repo_id, compressed=compressed)
    card = dataclasses.replace(content, plot=plot, degradation_plot=degradation_plot).to_card()
    return card if existing is None else update_card(existing, card)


def save_card(
    model_or_record: Source,
    folder: str | os.PathLike[str],
    *,
    repo_id: str | None = None,
    report: PerplexityComparison | None = None,
    harness: HarnessComparison | None = None,
    base_model: str | None = None,
    compressed: bool = False,
) -> Path:
    """Writes the card of a pruned model into a folder, with its pictures if matplotlib is installed.

    The pictures show the sparsity of every block and, with a `report`, what every language loses.
    An existing README.md is updated, as by `create_card`.

    Args:
        model_or_record: As for `create_card`.
        folder: Folder to write to; created if it does not exist.
        repo_id: As for `create_card`.
        report: As for `create_card`.
        harness: As for `create_card`.
        base_model: As for `create_card`.
        compressed: As for `create_card`.

    Returns:
        Path of the card.

    Raises:
        ValueError: As for `create_card`.
    """
    content = describe(model_or_record, report, base_model, harness)
    return write_card(dataclasses.replace(content, repo_id=repo_id, compressed=compressed), folder)


def describe(
    model_or_record: Source,
    report: PerplexityComparison | None = None,
    base_model: str | None = None,
    harness: HarnessComparison | None = None,
) -> PrunedModelCard:
    """Gathers and checks what the card of a model says.

    Args:
        model_or_record: As for `create_card`.
        report: As for `create_card`.
        base_model: As for `create_card`.
        harness: As for `create_card`.

    Returns:
        The content of the card.

    Raises:
        ValueError: As for `create_card`.
    """
    record = _record(model_or_record)
    card = _card_beside(model_or_record)
    if base_model is None:
        base_model = record.model if "/" in record.model and REPO_ID.fullmatch(record.model) else None
        license = local_license(card, base_model) or hub_license(base_model)
    elif not REPO_ID.fullmatch(base_model):
        raise ValueError(f"base_model={base_model!r} is not a repository id: give 'namespace/name', or leave it out.")
    else:
        license = hub_license(base_model) or local_license(card, base_model)
    return PrunedModelCard(
        record=record,
        settings=_settings(record),
        base_model=base_model,
        license=license,
        comparison=None if report is None else _of_one_model(report, record),
        harness=None if harness is None else _harness_of_one_model(harness),
        auto_class=auto_class(_architecture(model_or_record)),
    )


def write_card(content: PrunedModelCard, folder: str | os.PathLike[str]) -> Path:
    """Writes a card and its pictures into a folder, or updates the card in it."""
    path = Path(folder, CARD_NAME)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() and not own_file(path, path.parent):
        raise ValueError(
            f"{path} is a link to {path.readlink()}, outside its folder: put a file in its place, or delete it."
        )
    existing = path.read_bytes().decode("utf-8-sig") if path.is_file() else None
    has_plots = importlib.util.find_spec("matplotlib") is not None
    if has_plots:
        degradation = None if content.comparison is None else DEGRADATION_PLOT
        content = dataclasses.replace(content, plot=SPARSITY_PLOT, degradation_plot=degradation)
    card = content.to_card()
    card = card if existing is None else update_card(existing, card)
    if has_plots:
        plot_block_sparsity(content.record, path.with_name(SPARSITY_PLOT))
        if content.comparison is not None:
            plot_degradation(content.comparison, path.with_name(DEGRADATION_PLOT))
    with whole_file(path) as partial:
        card.save(partial)
    return path


def _record(model_or_record: Source) -> SparsityRecord:
    if isinstance(model_or_record, SparsityRecord):
        return model_or_record
    if isinstance(model_or_record, Mapping):
        return SparsityRecord.parse(model_or_record)
    record = sparsity_record(model_or_record)
    if record is None:
        raise ValueError(
            "The model has no sparsity record (config.mwanda_config): it was not pruned with optimum-mwanda, or its "
            "config was rewritten. Prune it with MWandaPruner first."
        )
    return record


def _card_beside(model_or_record: Source) -> Path | None:
    """Where the card of the dense model may be: in the folder that the model was loaded from."""
    if isinstance(model_or_record, (SparsityRecord, Mapping)):
        return None
    name = model_or_record if isinstance(model_or_record, (str, os.PathLike)) else model_or_record.name_or_path
    return Path(name, CARD_NAME) if name and Path(name).is_dir() else None


def _architecture(model_or_record: Source) -> str:
    """Name of the model's class; empty if only the record is known."""
    if isinstance(model_or_record, PreTrainedModel):
        return type(model_or_record).__name__
    if isinstance(model_or_record, (SparsityRecord, Mapping)):
        return ""
    found = read_config(checkpoint_folder(model_or_record, weights=False)).get("architectures")
    return str(found[0]) if isinstance(found, list) and found else ""


def _settings(record: SparsityRecord) -> MWandaConfig:
    try:
        return MWandaConfig.from_dict(record.settings)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"The settings in the sparsity record cannot be read: {error} They were written by optimum-mwanda "
            f"{clean(record.library_version)}; perhaps it is newer than this one."
        ) from error


def _of_one_model(report: PerplexityComparison, record: SparsityRecord) -> PerplexityComparison:
    """The report under the name `pruned`, with the calibrated languages from the record."""
    if len(report.pruned) != 1:
        raise ValueError(
            f"The report compares {len(report.pruned)} pruned models ({', '.join(report.pruned) or 'none'}): give one "
            "with only the model of this card, PerplexityComparison(report.dense, {'pruned': report.pruned[...]})."
        )
    (pruned,) = report.pruned.values()
    seen = list(record.languages) or None
    if report.seen is not None and {*report.seen} != {*(seen or ())}:
        raise ValueError(
            f"The report says that {_listed(report.seen)} was calibrated on, and the record of the model "
            f"{_listed(record.languages)}: leave `seen` out, the record knows."
        )
    return dataclasses.replace(report, pruned={"pruned": pruned}, seen=seen)


def _listed(languages: Iterable[str]) -> str:
    return abridged(map(repr, languages)) or "no language"


def _harness_of_one_model(harness: HarnessComparison) -> HarnessComparison:
    """The comparison under the name `pruned`."""
    if len(harness.pruned) != 1:
        raise ValueError(
            f"The harness results compare {len(harness.pruned)} pruned models ({', '.join(harness.pruned) or 'none'}): "
            "give HarnessComparison(dense, {'pruned': ...}) with only the model of this card."
        )
    (pruned,) = harness.pruned.values()
    return HarnessComparison(harness.dense, {"pruned": pruned})
