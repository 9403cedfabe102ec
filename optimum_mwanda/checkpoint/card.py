"""Model cards of pruned models: what was done, what it costs in every language, and what it does not give."""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, ModelCard, metadata_load
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of httpx or its successor
from transformers import PreTrainedModel

from ..configuration import MWandaConfig
from ..evaluation.plots import plot_block_sparsity
from ..evaluation.report import PerplexityComparison
from .card_content import PrunedModelCard
from .card_text import clean
from .card_update import update_card
from .schema import check_record
from .verification import sparsity_record

CARD_NAME = "README.md"
PLOT_NAME = "sparsity.png"

_REPO_ID = re.compile(r"(\w[\w.-]{0,95}/)?\w[\w.-]{0,95}", re.ASCII)

Source = PreTrainedModel | Mapping[str, Any] | str | os.PathLike[str]


def create_card(
    model_or_record: Source,
    *,
    repo_id: str | None = None,
    report: PerplexityComparison | None = None,
    base_model: str | None = None,
    plot: str | None = None,
    compressed: bool = False,
    existing: str | None = None,
) -> ModelCard:
    """Writes the card of a pruned model.

    The licence is that of the dense model: the first that is found on the card of `base_model` as it is passed, in the
    folder that the model was loaded from, or on the card of the model that the record names. Without one the card names
    none.

    Args:
        model_or_record: A pruned model, its record, or a folder or repository with a pruned model.
        repo_id: Repository that the model goes to.
        report: The dense model and this pruned model, evaluated on the same text.
        base_model: Repository of the dense model. None: what the record says, if that has the form of a repository.
        plot: File name of a plot of the sparsity beside the card, as `save_card` makes it. None: a table in its place.
        compressed: Whether the weights are stored compressed.
        existing: Content of a card to update. Only its own section is replaced, and its metadata merged.

    Returns:
        The card: `print` it, or `save` it.

    Raises:
        ValueError: If the model has no record or a malformed one, the report is not about one pruned model, or the
            existing card is damaged.
    """
    content = describe(model_or_record, report, base_model)
    card = dataclasses.replace(content, repo_id=repo_id, plot=plot, compressed=compressed).to_card()
    return card if existing is None else update_card(existing, card)


def save_card(
    model_or_record: Source,
    folder: str | os.PathLike[str],
    *,
    repo_id: str | None = None,
    report: PerplexityComparison | None = None,
    base_model: str | None = None,
    compressed: bool = False,
) -> Path:
    """Writes the card of a pruned model into a folder, with a plot of its sparsity if matplotlib is installed.

    A README.md that is there already is updated, as `create_card` does it.

    Args:
        model_or_record: As for `create_card`.
        folder: Where to write; made if need be.
        repo_id: As for `create_card`.
        report: As for `create_card`.
        base_model: As for `create_card`.
        compressed: As for `create_card`.

    Returns:
        Path of the card.

    Raises:
        ValueError: As for `create_card`.
    """
    content = describe(model_or_record, report, base_model)
    return write_card(dataclasses.replace(content, repo_id=repo_id, compressed=compressed), folder)


def describe(
    model_or_record: Source, report: PerplexityComparison | None = None, base_model: str | None = None
) -> PrunedModelCard:
    """Gathers and checks what the card of a model says.

    Args:
        model_or_record: As for `create_card`.
        report: As for `create_card`.
        base_model: As for `create_card`.

    Returns:
        The content of the card.

    Raises:
        ValueError: As for `create_card`.
    """
    record = _record(model_or_record)
    folder = _local_folder(model_or_record)
    if base_model is None:
        base_model = record["model"] if "/" in record["model"] and _REPO_ID.fullmatch(record["model"]) else None
        license = _local_license(folder, base_model) or _hub_license(base_model)
    elif not _REPO_ID.fullmatch(base_model):
        raise ValueError(f"base_model={base_model!r} is no repository id: give 'namespace/name', or leave it out.")
    else:
        license = _hub_license(base_model) or _local_license(folder, base_model)
    return PrunedModelCard(
        record=record,
        settings=_settings(record),
        base_model=base_model,
        license=license,
        comparison=None if report is None else _of_one_model(report, record),
    )


def write_card(content: PrunedModelCard, folder: str | os.PathLike[str]) -> Path:
    """Writes a card and its plot into a folder, or updates the card that is there."""
    path = Path(folder, CARD_NAME)
    path.parent.mkdir(parents=True, exist_ok=True)
    existing = path.read_bytes().decode("utf-8-sig") if path.is_file() else None
    if importlib.util.find_spec("matplotlib") is not None:
        plot_block_sparsity(content.record, path.with_name(PLOT_NAME))
        content = dataclasses.replace(content, plot=PLOT_NAME)
    card = content.to_card()
    (card if existing is None else update_card(existing, card)).save(path)
    return path


def _record(model_or_record: Source) -> dict[str, Any]:
    record = model_or_record if isinstance(model_or_record, Mapping) else sparsity_record(model_or_record)
    if record is None:
        raise ValueError(
            "The model has no sparsity record (config.mwanda_config): it was not pruned with optimum-mwanda, or its "
            "config was rewritten. Prune it with MWandaPruner first."
        )
    return check_record(record)


def _local_folder(model_or_record: Source) -> Path | None:
    """Folder that the model was loaded from; it may hold the card of the dense model."""
    if isinstance(model_or_record, Mapping):
        return None
    name = model_or_record if isinstance(model_or_record, (str, os.PathLike)) else model_or_record.name_or_path
    return Path(name) if name and Path(name).is_dir() else None


def _settings(record: Mapping[str, Any]) -> MWandaConfig:
    try:
        return MWandaConfig.from_dict(record["settings"])
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"The settings in the sparsity record cannot be read: {error} They were written by optimum-mwanda "
            f"{clean(record['library_version'])}; perhaps it is newer than this one."
        ) from error


def _of_one_model(report: PerplexityComparison, record: Mapping[str, Any]) -> PerplexityComparison:
    """The report under the name `pruned`, with the calibrated languages of the record where it names none."""
    if len(report.pruned) != 1:
        raise ValueError(
            f"The report compares {len(report.pruned)} pruned models ({', '.join(report.pruned) or 'none'}): give one "
            "with only the model of this card, PerplexityComparison(report.dense, {'pruned': report.pruned[...]})."
        )
    (pruned,) = report.pruned.values()
    seen = report.seen if report.seen is not None else list(record["languages"]) or None
    return PerplexityComparison(report.dense, {"pruned": pruned}, seen)


def _local_license(folder: Path | None, base_model: str | None) -> dict[str, str]:
    """The licence on the card in a folder; nothing if there is no such card."""
    if folder is None or not (folder / CARD_NAME).is_file():
        return {}
    try:
        return _license(metadata_load(folder / CARD_NAME) or {}, base_model)
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def _hub_license(base_model: str | None) -> dict[str, str]:
    """The licence on the card of a repository; nothing if there is no card or it cannot be reached."""
    if base_model is None:
        return {}
    try:
        # One request: a download would be tried for half a minute where there is no network.
        return _license(HfApi().model_info(base_model, timeout=10).card_data or {}, base_model)
    except (OSError, ValueError, yaml.YAMLError, HTTPError):
        return {}


def _license(data: Any, base_model: str | None) -> dict[str, str]:
    """What the metadata of a card says of the licence."""
    if not isinstance(data.get("license"), str):
        return {}
    keys = ("license", "license_name", "license_link")
    found = {key: clean(data.get(key)) for key in keys if isinstance(data.get(key), str)}
    link = found.get("license_link", ":")
    if base_model and ":" not in link:  # a file beside the card of the dense model
        found["license_link"] = f"https://huggingface.co/{base_model}/blob/main/{link}"
    return found
