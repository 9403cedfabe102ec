"""The blocks and matrices of a sparsity record: their counts, from which its sparsities must follow."""

import math
from collections.abc import Sequence
from typing import Any

from .fields import is_count, is_error, is_name, is_share, require
from .parts import RecordedBlock, RecordedMatrix, RecordedReconstruction

_ERRORS = "numbers that are not negative"

Column = list[tuple[tuple[int, ...], int] | None]
"""Shape and zeros of a path in every block; None in blocks that lack it."""


def read_counts(document: dict[str, Any]) -> tuple[tuple[RecordedBlock, ...], tuple[RecordedMatrix, ...]]:
    """Checks `blocks` and `matrices`, and that every sparsity follows from the counts.

    Args:
        document: The record, with its `achieved_sparsity` checked.

    Returns:
        The blocks; and the matrices block by block, sorted by path as in saved configs.

    Raises:
        ValueError: If a part is not legal, or the parts do not agree.
    """
    blocks: Any = document.get("blocks")
    paths: Any = document.get("matrices")
    require(isinstance(blocks, dict), "blocks", blocks, "an object with names and sparsity")
    require(isinstance(paths, dict), "matrices", paths, "an object of path to shape and zeros")
    names = _read_names(blocks.get("names"))
    matrices = _spell_out(names, {path: _read_column(path, entry, len(names)) for path, entry in paths.items()})
    zeros, sizes = _totals(names, matrices)
    require(all(sizes), "matrices", list(paths), "such that every block has one")
    sparsity = blocks.get("sparsity")
    _check_sparsities(sparsity, [zero / size for zero, size in zip(zeros, sizes, strict=True)])
    share, recorded = sum(zeros) / sum(sizes), document["achieved_sparsity"]
    is_legal = abs(recorded - share) <= 1e-6
    require(is_legal, "achieved_sparsity", recorded, f"{share:.6f}, as the counts give it")
    trained = _read_reconstruction(blocks.get("reconstruction"), len(names))
    return tuple(map(RecordedBlock, names, sparsity, trained)), matrices


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) in (2, 3) and all(is_count(side, 2**31) and side for side in value)


def _read_names(names: Any) -> list[str]:
    is_legal = isinstance(names, list) and bool(names) and all(map(is_name, names)) and len(set(names)) == len(names)
    require(is_legal, "blocks.names", names, "a list of different module paths")
    return list(names)


def _read_column(path: str, entry: Any, blocks: int) -> Column:
    """One entry of `matrices`: its shape is written once, or once per block if the blocks differ."""
    require(is_name(path) and isinstance(entry, dict), f"matrices[{path!r}]", entry, "an object under a path")
    shape, zeros = entry.get("shape"), entry.get("zeros")
    shapes = [shape] * blocks if _is_shape(shape) else shape
    for key, column in (("shape", shapes), ("zeros", zeros)):
        is_legal = isinstance(column, list) and len(column) == blocks
        require(is_legal, f"matrices[{path!r}].{key}", column, f"one entry for each of the {blocks} blocks")
    for size, count in zip(shapes, zeros, strict=True):
        is_legal = count is None or (_is_shape(size) and is_count(count, math.prod(size)))
        require(is_legal, f"a count of matrices[{path!r}]", count, f"null or a count that fits the shape {size}")
    return [None if count is None else (tuple(size), count) for size, count in zip(shapes, zeros, strict=True)]


def _spell_out(names: Sequence[str], columns: dict[str, Column]) -> tuple[RecordedMatrix, ...]:
    """Every matrix with its full name."""
    matrices = []
    for index, block in enumerate(names):
        for path, column in sorted(columns.items()):
            if (found := column[index]) is not None:
                matrices.append(RecordedMatrix(f"{block}.{path}" if path else block, block, *found))
    is_legal = len({matrix.name for matrix in matrices}) == len(matrices)
    require(is_legal, "matrices", len(matrices), "of different full paths")
    return tuple(matrices)


def _read_reconstruction(columns: Any, blocks: int) -> list[RecordedReconstruction | None]:
    """What training the blocks has brought; only there if they were trained."""
    if columns is None:
        return [None] * blocks
    require(isinstance(columns, dict), "blocks.reconstruction", columns, "an object with epoch, before and after")
    rules = {"epoch": (is_count, "whole numbers"), "before": (is_error, _ERRORS), "after": (is_error, _ERRORS)}
    for key, (is_legal, allowed) in rules.items():
        column = columns.get(key)
        fits = isinstance(column, list) and len(column) == blocks and all(map(is_legal, column))
        require(
            fits, f"blocks.reconstruction.{key}", column, f"a list of {allowed}, one for each of the {blocks} blocks"
        )
    return [RecordedReconstruction(*each) for each in zip(*(columns[key] for key in rules), strict=True)]


def _totals(names: Sequence[str], matrices: Sequence[RecordedMatrix]) -> tuple[list[int], list[int]]:
    """Zeros and weights of every block."""
    zeros, sizes = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for matrix in matrices:
        zeros[matrix.block] += matrix.zeros
        sizes[matrix.block] += matrix.numel
    return list(zeros.values()), list(sizes.values())


def _check_sparsities(sparsity: Any, shares: Sequence[float]) -> None:
    is_legal = isinstance(sparsity, list) and len(sparsity) == len(shares) and all(map(is_share, sparsity))
    is_legal = is_legal and all(abs(a - b) <= 1e-6 for a, b in zip(sparsity, shares, strict=True))
    require(is_legal, "blocks.sparsity", sparsity, "the share of zeros of each block, as the counts give it")
