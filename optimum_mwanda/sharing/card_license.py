"""A pruned model has the licence of its dense one, which is looked up on the cards within reach."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, metadata_load
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of httpx or its successor

from .card_text import clean


def local_license(card: Path | None, base_model: str | None) -> dict[str, str]:
    """The licence on the card in the folder of the dense model; nothing without a card."""
    if card is None or not card.is_file():
        return {}
    try:
        return _license(metadata_load(card) or {}, base_model)
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def hub_license(base_model: str | None) -> dict[str, str]:
    """The licence on the card of a repository; nothing if there is no card or it cannot be reached."""
    if base_model is None:
        return {}
    try:
        # A single request: without a network, a download would be retried for half a minute.
        return _license(HfApi().model_info(base_model, timeout=10).card_data or {}, base_model)
    except (OSError, ValueError, yaml.YAMLError, HTTPError):
        return {}


def _license(data: Any, base_model: str | None) -> dict[str, str]:
    """What the metadata of a card says about the licence."""
    if not isinstance(data.get("license"), str):
        return {}
    keys = ("license", "license_name", "license_link")
    found = {key: clean(data.get(key)) for key in keys if isinstance(data.get(key), str)}
    link = found.get("license_link", ":")
    if base_model and ":" not in link:  # a file beside the card of the dense model
        found["license_link"] = f"https://huggingface.co/{base_model}/blob/main/{link}"
    return found
