"""Merging a generated card into an existing one: replaces our section, merges the metadata and keeps the rest."""

from typing import Any

import yaml
from huggingface_hub import CardData, ModelCard

from .card_harness import HARNESS_TASK_NAME
from .names import CARD_NAME

BEGIN = "<!-- optimum-mwanda:begin -->"
END = "<!-- optimum-mwanda:end -->"
TASK_NAME = "Language modelling, one language at a time (optimum-mwanda)"
"""Task of our own evaluation results: an update replaces results under this name and keeps others."""
OUR_TASKS = (TASK_NAME, HARNESS_TASK_NAME)


def update_card(existing: str, new: ModelCard) -> ModelCard:
    """Merges a generated card into an existing one.

    The text between the two marker comments is replaced; without markers the section is appended. Languages and tags
    of both are kept, and so are evaluation results from elsewhere. The new card decides the base model and its
    relation; anything else that the existing card says stays.

    Args:
        existing: Content of the existing README.md.
        new: The generated card.

    Returns:
        The existing card, updated.

    Raises:
        ValueError: If the markers or the metadata of the existing card are damaged.
    """
    try:
        card = ModelCard(existing)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(
            f"The metadata of the existing {CARD_NAME} cannot be read: {error}. Repair it first."
        ) from error
    line_break = "\r\n" if "\r\n" in existing else "\n"
    card.text = _replace_section(card.text, new.text).replace("\r\n", "\n").replace("\n", line_break)
    _merge_metadata(card.data, new.data)
    return card


def _replace_section(text: str, new: str) -> str:
    ours, parts = _split(new), _split(text)
    assert ours is not None  # the template holds both markers
    if parts is None:
        return f"{text.rstrip()}\n\n{ours[1]}\n"
    return parts[0] + ours[1] + parts[2]


def _split(text: str) -> tuple[str, str, str] | None:
    """Text before, within and after the markers, each on its own line; None if there are none."""
    lines = text.splitlines(keepends=True)
    begins, ends = ([i for i, line in enumerate(lines) if line.strip() == marker] for marker in (BEGIN, END))
    if not begins and not ends:
        return None
    if len(begins) != 1 or len(ends) != 1 or begins[0] > ends[0]:
        raise ValueError(
            f"{CARD_NAME} holds {len(begins)} lines {BEGIN!r} and {len(ends)} lines {END!r}: leave one of each, in "
            "this order, around the section that optimum-mwanda may replace, or remove all to have it appended."
        )
    first, last = begins[0], ends[0]
    section, rest = "".join(lines[first : last + 1]), "".join(lines[last + 1 :])
    bare = section.rstrip("\r\n")
    return "".join(lines[:first]), bare, section[len(bare) :] + rest


def _merge_metadata(data: CardData, new: CardData) -> None:
    for name in ("language", "tags"):
        data[name] = list(dict.fromkeys([*_as_list(data.get(name)), *_as_list(new.get(name))])) or None
    if new.get("base_model") is not None:
        data["base_model"], data["base_model_relation"] = new.get("base_model"), new.get("base_model_relation")
    for name in ("library_name", "pipeline_tag"):
        data[name] = data.get(name) or new.get(name)
    if data.get("license") is None:
        for name in ("license", "license_name", "license_link"):
            data[name] = new.get(name)
    others = [result for result in data.get("eval_results") or [] if result.task_name not in OUR_TASKS]
    data["eval_results"] = [*others, *(new.get("eval_results") or [])] or None
    data["model_name"] = (data.get("model_name") or new.get("model_name")) if data["eval_results"] else None


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
