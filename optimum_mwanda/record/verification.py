"""Reading the sparsity record and comparing it with the actual zeros."""

import dataclasses
import os
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..modeling.blocks import find_blocks
from ..modeling.weights import find_weights, flat
from ..storage.files import checkpoint_folder, read_config
from ..utils import markdown_table
from .matrices import StoredMatrix, count_matrices, loaded_matrices, read_matrices
from .parts import RecordedMatrix
from .schema import RECORD_KEY, SparsityRecord
from .tails import Tails

ModelOrPath = nn.Module | str | os.PathLike[str]

_KEEP_ZEROS = (
    "Training fills zeros unless masks are kept, as keep_masks does. peft's merge_and_unload fills them too: merge an "
    "adapter with merge_preserving_masks(peft_model) instead."
)


@dataclasses.dataclass(frozen=True)
class ChangedMatrix:
    """A matrix with another number of zeros than in the record.

    Attributes:
        name: Module path, or parameter of all experts of a layer, as in the record.
        recorded: Zeros after pruning.
        found: Zeros now.
    """

    name: str
    recorded: int
    found: int


@dataclasses.dataclass(frozen=True)
class SparsityVerification:
    """The sparsity record compared with the weights; `print` shows it.

    Attributes:
        matrices: Number of matrices that the record names.
        lost: Those with fewer zeros than recorded: training did not keep the masks, a merge, or other weights.
        gained: Those with more zeros: further pruning, or a cast to float16 that rounded tiny weights to zero.
        missing: Names that are not among the weights, or match several.
        reshaped: Names of weights with another shape.
    """

    matrices: int
    lost: tuple[ChangedMatrix, ...] = ()
    gained: tuple[ChangedMatrix, ...] = ()
    missing: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every matrix is present with as many zeros as recorded."""
        return not (self.lost or self.gained or self.missing or self.reshaped)

    def __str__(self) -> str:
        if self.ok:
            return f"All {self.matrices} matrices hold as many zeros as the sparsity record says."
        differing = len(self.lost) + len(self.gained) + len(self.missing) + len(self.reshaped)
        rows = [
            [matrix.name, problem, f"{matrix.recorded:,}", f"{matrix.found:,}"]
            for problem, changed in (("lost zeros", self.lost), ("gained zeros", self.gained))
            for matrix in changed
        ]
        for problem, names in (("missing", self.missing), ("another shape", self.reshaped)):
            rows += [[name, problem, "", ""] for name in names]
        table = markdown_table(["matrix", "problem", "zeros recorded", "zeros found"], rows)
        text = f"{differing} of {self.matrices} matrices differ from the sparsity record.\n{table}"
        return f"{text}\n{_KEEP_ZEROS}" if self.lost else text


def sparsity_record(model_or_path: ModelOrPath, **hub_kwargs: Any) -> SparsityRecord | None:
    """Reads the sparsity record of a model; from a path or repository id, without loading the model.

    Args:
        model_or_path: Model, folder, or repository id.
        **hub_kwargs: Passed to huggingface_hub: `revision`, `token`, `cache_dir`, ...

    Returns:
        The record, with the fields of `docs/record.md` as attributes; None if there is none. `print` shows a summary,
        and `to_dict()` gives it as in the config.

    Raises:
        FileNotFoundError: If a local path is not a folder with a config.
        ValueError: If the record or its config is not valid, or the record was written by a newer version.
    """
    if isinstance(model_or_path, nn.Module):
        record = getattr(getattr(model_or_path, "config", None), RECORD_KEY, None)
    else:
        record = read_config(checkpoint_folder(model_or_path, weights=False, **hub_kwargs)).get(RECORD_KEY)
    return None if record is None else SparsityRecord.parse(record)


def sparsity_map(model_or_path: ModelOrPath, **hub_kwargs: Any) -> dict[str, float]:
    """Counts the zeros and gives the sparsity of every matrix.

    Args:
        model_or_path: Model, folder, or repository id; from a folder or repository, weights are read one by one.
        **hub_kwargs: Passed to huggingface_hub: `revision`, `token`, `cache_dir`, ...

    Returns:
        Module path, or parameter of all experts of a layer, to share of zeros. Covers the matrices in the sparsity
        record that are present, or in a model without a record all prunable ones.

    Raises:
        FileNotFoundError: If a local path holds no config or no safetensors.
        ValueError: If a file or the record is not valid, a weight of a loaded model has no values, or a folder or
            repository has no record.
    """
    if isinstance(model_or_path, nn.Module) and sparsity_record(model_or_path) is None:
        weights = find_weights(find_blocks(model_or_path))
        found = count_matrices(flat(weights))
        return {matrix.name: matrix.zeros / matrix.numel for matrix in found}
    recorded, matrices = _recorded_and_found(model_or_path, hub_kwargs)
    names = match_names(recorded, matrices)
    stored = {matrix.name: matrices[names[matrix.name]] for matrix in recorded if matrix.name in names}
    return {name: matrix.count_zeros() / matrix.numel for name, matrix in stored.items()}


def verify_sparsity(model_or_path: ModelOrPath, **hub_kwargs: Any) -> SparsityVerification:
    """Counts the zeros of every matrix in the sparsity record, and compares.

    Args:
        model_or_path: Model, folder, or repository id; from a folder or repository, weights are read one by one.
        **hub_kwargs: Passed to huggingface_hub: `revision`, `token`, `cache_dir`, ...

    Returns:
        The matrices that differ; `ok` is True if none do.

    Raises:
        FileNotFoundError: If a local path holds no config or no safetensors.
        ValueError: If a file or the record is not valid, a weight of a loaded model has no values, or there is no
            record.
    """
    recorded, matrices = _recorded_and_found(model_or_path, hub_kwargs)
    names = match_names(recorded, matrices)
    lost: list[ChangedMatrix] = []
    gained: list[ChangedMatrix] = []
    missing: list[str] = []
    reshaped: list[str] = []
    for matrix in recorded:
        if matrix.name not in names:
            missing.append(matrix.name)
            continue
        found = matrices[names[matrix.name]]
        if not found.fits(matrix.shape):
            reshaped.append(matrix.name)
            continue
        zeros = found.count_zeros()
        if zeros != matrix.zeros:
            (lost if zeros < matrix.zeros else gained).append(ChangedMatrix(matrix.name, matrix.zeros, zeros))
    return SparsityVerification(len(recorded), tuple(lost), tuple(gained), tuple(missing), tuple(reshaped))


def match_names(recorded: Sequence[RecordedMatrix], existing: Collection[str]) -> dict[str, str]:
    """Finds recorded matrices among existing names, even if a wrapper added, removed or renamed a prefix.

    An exact name wins; otherwise the name that shares the longest tail, which must reach back to the list of blocks. If
    several share it, the only one with every part of the recorded name wins: `model.language_model.layers.0.q` is
    `language_model.model.layers.0.q` and not `vision_tower.layers.0.q`.

    Args:
        recorded: Matrices of the record.
        existing: Names of the existing weights.

    Returns:
        Recorded to existing name, in the same order in every process; names without a unique match are left out.
    """
    exact = {matrix.name for matrix in recorded}.intersection(existing)
    others = Tails(set(existing) - exact)
    matched = {matrix.name: matrix.name for matrix in recorded if matrix.name in exact}
    for matrix in recorded:
        if matrix.name not in exact:
            shortest = len(matrix.name) - len(matrix.block) + len(".".join(matrix.block.split(".")[-2:]))
            candidates = others.sharing_most(matrix.name, shortest)
            if len(candidates) > 1:
                parts = set(matrix.name.split("."))
                candidates = [name for name in candidates if parts.issubset(name.split("."))]
            if len(candidates) == 1:
                matched[matrix.name] = candidates[0]
    uses = Counter(matched.values())
    return {name: found for name, found in matched.items() if uses[found] == 1}


def _recorded_and_found(
    model_or_path: ModelOrPath, hub_kwargs: dict[str, Any]
) -> tuple[Sequence[RecordedMatrix], dict[str, StoredMatrix]]:
    place: nn.Module | Path
    if isinstance(model_or_path, nn.Module):
        place, name = model_or_path, type(model_or_path).__name__
    else:
        place, name = checkpoint_folder(model_or_path, weights=True, **hub_kwargs), os.fspath(model_or_path)
    record = sparsity_record(place)
    if record is None:
        raise ValueError(
            f"{name} has no sparsity record: it was not pruned with optimum-mwanda, or its config was rewritten. Load "
            "the model and call sparsity_map(model) to count its zeros."
        )
    if isinstance(place, nn.Module):
        return record.matrices, loaded_matrices(place)
    return record.matrices, read_matrices(place, {matrix.name for matrix in record.matrices})
