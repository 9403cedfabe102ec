"""The layout of the sparsity record, checked: it may come from anywhere. `docs/record.md` names every field."""

import dataclasses
import math
import re
import reprlib
from collections.abc import Callable
from typing import Any

from ..storage.files import bounded_copy
from ..version import __version__

RECORD_KEY = "mwanda_config"
SCHEMA = 2
MOST_HISTORY = 8
MOST_EXPERT_NAMES = 32
LIBRARIES = ("torch", "transformers")


@dataclasses.dataclass(frozen=True)
class RecordedMatrix:
    """What the record says of one matrix, or of the matrices of all experts in one parameter.

    Attributes:
        name: Module path, or path of the parameter of all experts.
        block: Module path of its block.
        shape: `(out, in)`, or `(experts, out, in)`.
        zeros: Zeros that were counted after pruning.
    """

    name: str
    block: str
    shape: tuple[int, ...]
    zeros: int

    @property
    def numel(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


def recorded_matrices(record: dict[str, Any]) -> list[RecordedMatrix]:
    """Spells out the matrices of a checked record, block by block and sorted by path, as saved configs are."""
    found = []
    for index, block in enumerate(record["blocks"]["names"]):
        for path, entry in sorted(record["matrices"].items()):
            zeros = entry["zeros"][index]
            if zeros is not None:
                shape = entry["shape"] if isinstance(entry["shape"][0], int) else entry["shape"][index]
                found.append(RecordedMatrix(f"{block}.{path}" if path else block, block, tuple(shape), zeros))
    return found


def _is_count(value: Any, most: int = 2**53) -> bool:
    return type(value) is int and 0 <= value <= most


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()  # names are shown in terminals and tables


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) in (2, 3) and all(_is_count(side, 2**31) and side for side in value)


def _is_language(value: Any) -> bool:
    return isinstance(value, dict) and _is_count(value.get("tokens")) and _is_share(value.get("weight"))


FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "library_version": (lambda value: isinstance(value, str), "a string"),
    "settings": (lambda value: isinstance(value, dict), "an object of settings"),
    "pattern": (
        lambda value: isinstance(value, str) and re.fullmatch("unstructured|[0-9]{1,4}:[0-9]{1,4}", value) is not None,
        "'unstructured' or 'N:M'",
    ),
    "target_sparsity": (_is_share, "a number in [0, 1]"),
    "achieved_sparsity": (_is_share, "a number in [0, 1]"),
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
    "seed": (lambda value: _is_count(value, 2**64), "a whole number of at least 0"),
    "versions": (
        lambda value: isinstance(value, dict) and all(isinstance(value.get(name), str) for name in LIBRARIES),
        "an object with the versions of torch and transformers",
    ),
}

EXPERT_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "policy": (_is_name, "the name of a policy"),
    "wanted": (_is_count, "a whole number of tokens"),
    "count": (_is_count, "a whole number of experts"),
    "lacking": (_is_count, "a whole number of experts"),
    "names": (lambda value: isinstance(value, list) and all(map(_is_name, value)), "a list of module paths"),
    "fewest": (_is_count, "a whole number of tokens"),
    "unreached": (
        lambda value: isinstance(value, dict) and all(map(_is_count, value.values())),
        "an object of language to a whole number of experts",
    ),
}


def check_record(record: Any) -> dict[str, Any]:
    """Checks a record that may come from anywhere; keys that this version does not know are kept.

    Args:
        record: What a config holds under `mwanda_config`.

    Returns:
        A copy of the record, known to have every field of `docs/record.md`, of bounded size, and to agree with itself.

    Raises:
        ValueError: If it is anything else.
    """
    copy = bounded_copy(record)
    _require(isinstance(copy, dict), "it", copy, "a JSON object")
    _check_fields(copy, "")
    history = copy.get("history")
    is_legal = isinstance(history, list) and len(history) <= MOST_HISTORY
    _require(is_legal, "history", history, f"a list of at most {MOST_HISTORY} earlier records")
    for index, entry in enumerate(history):
        _require(isinstance(entry, dict), f"history[{index}]", entry, "a JSON object")
        _check_fields(entry, f"history[{index}].")
    _check_experts(copy)
    _check_counts(copy)
    checked: dict[str, Any] = copy
    return checked


def _require(condition: bool, where: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ValueError(f"The sparsity record is not valid: {where} is {reprlib.repr(value)}, but must be {allowed}.")


def _check_fields(record: dict[str, Any], where: str) -> None:
    schema = record.get("schema")
    if type(schema) is int and schema > SCHEMA:
        raise ValueError(
            f"The sparsity record has the schema {schema}, and this optimum-mwanda {__version__} reads up to {SCHEMA}: "
            "upgrade optimum-mwanda."
        )
    _require(type(schema) is int and schema >= 1, f"{where}schema", schema, f"a whole number from 1 to {SCHEMA}")
    for field, (is_legal, allowed) in FIELDS.items():
        _require(is_legal(record.get(field)), f"{where}{field}", record.get(field), allowed)


def _check_experts(record: dict[str, Any]) -> None:
    """Checks `experts`, which only records of mixtures of experts have."""
    experts = record.get("experts")
    if experts is None:
        return
    _require(isinstance(experts, dict), "experts", experts, "an object that says how calibration reached the experts")
    for field, (is_known, allowed) in EXPERT_FIELDS.items():
        _require(is_known(experts.get(field)), f"experts.{field}", experts.get(field), allowed)
    count, lacking, names, unreached = (experts[key] for key in ("count", "lacking", "names", "unreached"))
    _require(lacking <= count, "experts.lacking", lacking, f"at most the number of experts, {count}")
    is_legal = len(names) == min(lacking, MOST_EXPERT_NAMES)
    _require(is_legal, "experts.names", names, f"the names of the {lacking} experts, at most {MOST_EXPERT_NAMES}")
    is_legal = all(language in record["languages"] and missed <= count for language, missed in unreached.items())
    _require(is_legal, "experts.unreached", unreached, f"about languages of the record and at most {count} experts")


def _check_counts(record: dict[str, Any]) -> None:
    """Checks `blocks` and `matrices`, and that every sparsity follows from the counts."""
    blocks: Any = record.get("blocks")
    matrices: Any = record.get("matrices")
    _require(isinstance(blocks, dict), "blocks", blocks, "an object with names and sparsity")
    _require(isinstance(matrices, dict), "matrices", matrices, "an object of path to shape and zeros")
    names, sparsity = blocks.get("names"), blocks.get("sparsity")
    is_legal = isinstance(names, list) and bool(names) and all(map(_is_name, names)) and len(set(names)) == len(names)
    _require(is_legal, "blocks.names", names, "a list of different module paths")
    for path, entry in matrices.items():
        _require(_is_name(path) and isinstance(entry, dict), f"matrices[{path!r}]", entry, "an object under a path")
        shape, zeros = entry.get("shape"), entry.get("zeros")
        shapes = [shape] * len(names) if _is_shape(shape) else shape
        for key, column in (("shape", shapes), ("zeros", zeros)):
            is_legal = isinstance(column, list) and len(column) == len(names)
            _require(is_legal, f"matrices[{path!r}].{key}", column, f"one entry for each of the {len(names)} blocks")
        for size, count in zip(shapes, zeros, strict=True):
            is_legal = count is None or (_is_shape(size) and _is_count(count, math.prod(size)))
            _require(is_legal, f"a count of matrices[{path!r}]", count, f"null or a count that fits the shape {size}")
    found = recorded_matrices(record)
    _require(len({matrix.name for matrix in found}) == len(found), "matrices", len(found), "of different full paths")
    totals = {name: [0, 0] for name in names}
    for matrix in found:
        totals[matrix.block][0] += matrix.zeros
        totals[matrix.block][1] += matrix.numel
    _require(all(size for _, size in totals.values()), "matrices", list(matrices), "such that every block has one")
    shares = [zeros / size for zeros, size in totals.values()]
    is_legal = isinstance(sparsity, list) and len(sparsity) == len(shares) and all(map(_is_share, sparsity))
    is_legal = is_legal and all(abs(a - b) <= 1e-6 for a, b in zip(sparsity, shares, strict=True))
    _require(is_legal, "blocks.sparsity", sparsity, "the share of zeros of each block, as the counts give it")
    share = sum(zeros for zeros, _ in totals.values()) / sum(size for _, size in totals.values())
    is_legal = abs(record["achieved_sparsity"] - share) <= 1e-6
    _require(is_legal, "achieved_sparsity", record["achieved_sparsity"], f"{share:.6f}, as the counts give it")
