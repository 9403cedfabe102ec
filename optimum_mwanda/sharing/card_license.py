"""The licence of a pruned model is that of its dense one: looked up on the cards that can be reached."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, metadata_load
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of httpx or its successor

from .card_text import clean


def local_license(card: Path | None, base_model: str | None) -> dict[str, str]:
    """The licence on a card that may lie in the folder of the dense model; nothing if it does not."""
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
