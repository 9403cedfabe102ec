"""How the activations of languages compare, block by block, from the statistics of calibration.

These are the numbers behind the pictures of `activations.py`; the symbols are those of `docs/method.md`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ...calibration.statistics import CalibrationStatistics, WeightStatistics

Blocks = Mapping[str, Sequence[str]]


def group_by_block(matrices: Sequence[str]) -> dict[str, list[str]]:
    """Sorts matrices into blocks by name: a block's path ends in the first number, as in `model.layers.3`.

    Args:
        matrices: Module paths.

    Returns:
        Module path of a block to its matrices, both in the given order. A path without a number is its own block.
    """
    blocks: dict[str, list[str]] = {}
    for name in matrices:
        parts = name.split(".")
        end = next((at for at, part in enumerate(parts, 1) if part.isdecimal()), len(parts))
        blocks.setdefault(".".join(parts[:end]), []).append(name)
    return blocks


def language_activity(statistics: CalibrationStatistics, blocks: Blocks) -> Tensor:
    """How strongly every language drives every block, relative to the mean over languages.

    With `R^l = sqrt(mean_j m_j^l)` for a matrix, it is the mean over the block's matrices of
    `log2(R^l / mean_l R^l)`: 1 if the activations of a language are twice as large as the average, 0 if they are as
    large.

    Args:
        statistics: Result of a calibration.
        blocks: Block to the names of its matrices.

    Returns:
        Shape `(languages, blocks)`, float64; NaN if no token of a language enters a block.
    """
    columns = [
        torch.stack([_relative_size(statistics.weights[name]) for name in names]).nanmean(0)
        for names in blocks.values()
    ]
    return torch.stack(columns, dim=1)


def pairwise_correlation(statistics: CalibrationStatistics, blocks: Blocks) -> Tensor:
    """Pearson correlation between channel profiles `r^l` of all pairs of languages, averaged over a block's matrices.

    The mean over the pairs of a block is `ρ_b`.

    Args:
        statistics: Result of a calibration.
        blocks: Block to the names of its matrices.

    Returns:
        Shape `(blocks, languages, languages)`, float64, symmetric. A constant profile counts 0; NaN if no token of a
        language enters a block.
    """
    return torch.stack(
        [
            torch.stack([_correlations(statistics.weights[name]) for name in names]).nanmean(0)
            for names in blocks.values()
        ]
    )


def pairs(correlations: Tensor) -> Tensor:
    """The unordered pairs of languages of `(…, languages, languages)` as `(…, pairs)`."""
    languages = correlations.shape[-1]
    upper = torch.triu_indices(languages, languages, offset=1)
    return correlations[..., upper[0], upper[1]]


def similarity_order(correlations: Tensor) -> list[int]:
    """Puts languages that behave alike side by side: each is followed by the most similar remaining one.

    Args:
        correlations: Shape `(languages, languages)`.

    Returns:
        Every index once, beginning with the language with the highest mean correlation.
    """
    known = correlations.nan_to_num(-2.0)
    order = [int(known.sum(1).argmax())]
    left = known.numpy().copy()
    while len(order) < len(known):
        left[:, order[-1]] = -np.inf
        order.append(int(left[order[-1]].argmax()))  # of equal ones the first
    return order


def _relative_size(entry: WeightStatistics) -> Tensor:
    size = _rms(entry).square().mean(1).sqrt()
    mean = size.nanmean()
    return (size / mean).log2() if mean > 0 else torch.where(size.isnan(), size, 0.0)


def _correlations(entry: WeightStatistics) -> Tensor:
    rms = _rms(entry)
    centred = rms - rms.mean(1, keepdim=True)
    norms = centred.norm(dim=1, keepdim=True)
    flat = norms <= 1e-12 * rms.norm(dim=1, keepdim=True)
    unit = torch.where(flat, 0.0, centred / norms)
    return (unit @ unit.T).clamp(-1, 1)


def _rms(entry: WeightStatistics) -> Tensor:
    """`r^l`, shape `(languages, in)`; NaN for a language without tokens in the matrix."""
    return torch.where(entry.tokens[:, None] > 0, entry.mean_square.double().sqrt(), torch.nan)
