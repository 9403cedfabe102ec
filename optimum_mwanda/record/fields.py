"""What each field of a sparsity record may hold."""

import re
import reprlib
from collections.abc import Callable, Collection
from typing import Any

from ..version import __version__
from .parts import RecordedExperts, RecordedLanguage, RecordedTraining

SCHEMA = 2
MAX_EXPERT_NAMES = 32
MAX_TRAININGS = 8
LIBRARIES = ("torch", "transformers")

Rules = dict[str, tuple[Callable[[Any], bool], str]]


def is_count(value: Any, maximum: int = 2**53) -> bool:
    """Whether a value is a whole number from 0 to a maximum."""
    return type(value) is int and 0 <= value <= maximum


def is_share(value: Any) -> bool:
    """Whether a value is a number from 0 to 1."""
    return type(value) in (int, float) and 0 <= value <= 1


def is_error(value: Any) -> bool:
    """Whether a value is a number that is not negative."""
    return type(value) in (int, float) and value >= 0


def is_name(value: Any) -> bool:
    """Whether a value is a string that can be shown unchanged in terminals and tables."""
    return isinstance(value, str) and value.isprintable()


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_language(value: Any) -> bool:
    return isinstance(value, dict) and is_count(value.get("tokens")) and is_share(value.get("weight"))


FIELDS: Rules = {
    "library_version": (lambda value: isinstance(value, str), "a string"),
    "settings": (lambda value: isinstance(value, dict), "an object of settings"),
    "pattern": (
        lambda value: isinstance(value, str) and re.fullmatch("unstructured|[0-9]{1,4}:[0-9]{1,4}", value) is not None,
        "'unstructured' or 'N:M'",
    ),
    "target_sparsity": (is_share, "a number in [0, 1]"),
    "achieved_sparsity": (is_share, "a number in [0, 1]"),
    "languages": (
        lambda value: isinstance(value, dict) and all(map(_is_language, value.values())),
        "an object of language to its tokens, a whole number, and its weight, a number in [0, 1]",
    ),
    "dataset_fingerprints": (
        lambda value: isinstance(value, list) and all(map(_is_digest, value)),
        "a list of SHA-256 hex digests",
    ),
    "model": (lambda value: isinstance(value, str), "a string"),
    "model_fingerprint": (_is_digest, "a SHA-256 hex digest"),
    "seed": (lambda value: is_count(value, 2**64), "a whole number of at least 0"),
    "versions": (
        lambda value: isinstance(value, dict) and all(isinstance(value.get(name), str) for name in LIBRARIES),
        "an object with the versions of torch and transformers",
    ),
}

EXPERT_FIELDS: Rules = {
    "policy": (is_name, "the name of a policy"),
    "wanted": (is_count, "a whole number of tokens"),
    "count": (is_count, "a whole number of experts"),
    "lacking": (is_count, "a whole number of experts"),
    "names": (lambda value: isinstance(value, list) and all(map(is_name, value)), "a list of module paths"),
    "fewest": (is_count, "a whole number of tokens"),
    "unreached": (
        lambda value: isinstance(value, dict) and all(map(is_count, value.values())),
        "an object of language to a whole number of experts",
    ),
}

TRAINING_FIELDS: Rules = {
    "recipe": (is_name, "a name"),
    "steps": (is_count, "a whole number of steps"),
    "library_version": (lambda value: isinstance(value, str), "a string"),
}


def read_chosen(chosen: Any) -> dict[str, str]:
    """Checks `chosen`, which only records have whose settings were found by trying.

    Raises:
        ValueError: If it is not legal.
    """
    is_legal = isinstance(chosen, dict) and all(is_name(value) for pair in chosen.items() for value in pair)
    require(is_legal, "chosen", chosen, "an object of what was found by trying to how, in strings on one line")
    return dict(chosen)


def require(condition: bool, where: str, value: Any, allowed: str) -> None:
    """Refuses a record.

    Raises:
        ValueError: If the condition does not hold; it says where, what was found, and what is allowed.
    """
    if not condition:
        raise ValueError(f"The sparsity record is not valid: {where} is {reprlib.repr(value)}, but must be {allowed}.")


def read_pruning(document: dict[str, Any], where: str) -> dict[str, Any]:
    """Checks what a record, or an entry of its history, says about a pruning.

    Args:
        document: The record, or the entry.
        where: What to put before the name of a field in errors.

    Returns:
        The values for `RecordedPruning`.

    Raises:
        ValueError: If a field is missing or not legal, or the schema is that of a newer version.
    """
    schema = document.get("schema")
    if type(schema) is int and schema > SCHEMA:
        raise ValueError(
            f"The sparsity record has the schema {schema}, but this optimum-mwanda {__version__} reads up to {SCHEMA}: "
            "upgrade optimum-mwanda."
        )
    require(type(schema) is int and schema >= 1, f"{where}schema", schema, f"a whole number from 1 to {SCHEMA}")
    fields = {"schema": schema, **_read_fields(document, FIELDS, where)}
    languages = {name: RecordedLanguage(part["tokens"], part["weight"]) for name, part in fields["languages"].items()}
    return {
        **fields,
        "languages": languages,
        "dataset_fingerprints": tuple(fields["dataset_fingerprints"]),
        "training": _read_trainings(document.get("training", []), where),
    }


def _read_trainings(trainings: Any, where: str) -> tuple[RecordedTraining, ...]:
    is_legal = isinstance(trainings, list) and len(trainings) <= MAX_TRAININGS
    require(is_legal, f"{where}training", trainings, f"a list of at most {MAX_TRAININGS} trainings")
    found = []
    for index, entry in enumerate(trainings):
        place = f"{where}training[{index}]"
        require(isinstance(entry, dict), place, entry, "a JSON object")
        found.append(RecordedTraining(**_read_fields(entry, TRAINING_FIELDS, f"{place}.")))
    return tuple(found)


def read_experts(experts: Any, languages: Collection[str]) -> RecordedExperts | None:
    """Checks `experts`, which only records of mixtures of experts have.

    Args:
        experts: This entry of the record.
        languages: Languages of the record.

    Raises:
        ValueError: If it is not legal.
    """
    if experts is None:
        return None
    require(isinstance(experts, dict), "experts", experts, "an object that says how calibration reached the experts")
    fields = _read_fields(experts, EXPERT_FIELDS, "experts.")
    found = RecordedExperts(**{**fields, "names": tuple(fields["names"])})
    count, lacking, unreached = found.count, found.lacking, found.unreached
    require(lacking <= count, "experts.lacking", lacking, f"at most the number of experts, {count}")
    is_legal = len(found.names) == min(lacking, MAX_EXPERT_NAMES)
    require(
        is_legal, "experts.names", fields["names"], f"the names of the {lacking} experts, at most {MAX_EXPERT_NAMES}"
    )
    is_legal = all(language in languages and missed <= count for language, missed in unreached.items())
    require(is_legal, "experts.unreached", unreached, f"about languages of the record and at most {count} experts")
    return found


def _read_fields(document: dict[str, Any], rules: Rules, where: str) -> dict[str, Any]:
    for field, (is_legal, allowed) in rules.items():
        require(is_legal(document.get(field)), f"{where}{field}", document.get(field), allowed)
    return {field: document[field] for field in rules}
