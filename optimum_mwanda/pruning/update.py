"""From the settings to the mask of one weight, and to the new values of what stays."""

from functools import partial

from torch import Tensor

from ..calibration.statistics import WeightStatistics
from ..configuration import MWandaConfig
from ..modeling.weights import PrunableWeight, check_finite
from .masks import n_of_m_mask, prune_lowest
from .reconstruction import admm, reconstruct, sparsegpt
from .refinement import refine_mask, shrink_gram
from .scoring import compute_mask, select


def mask_and_values(
    weight: PrunableWeight,
    entry: WeightStatistics | None,
    gram: Tensor | None,
    languages: Tensor | None,
    sparsity: float,
    config: MWandaConfig,
) -> tuple[Tensor, Tensor | None]:
    """Decides which entries of one weight go, and what becomes of the others.

    Args:
        weight: The weight.
        entry: Its statistics; without them it is pruned by magnitude.
        gram: Pooled Gram matrix of its input, shape `(in, in)`; without it no value is changed.
        languages: Weight of every language.
        sparsity: Share to prune.
        config: The settings.

    Returns:
        Boolean mask of shape `(out, in)`, True where pruned, and the new values or None if those that stay keep theirs.

    Raises:
        FloatingPointError: If the weight or the Gram matrix holds NaN or infinite values, or the latter is not positive
            definite whatever the damping.
    """
    if gram is None:
        return compute_mask(weight, entry, languages, sparsity, config), None
    check_finite(weight)
    matrix = weight.matrix
    damping: float = config.damping  # type: ignore[assignment]
    if config.criterion == "sparsegpt":
        every = None if config.kept_of is None else config.kept_of[1]
        choose = partial(select_part, sparsity=sparsity, config=config)
        values, pruned = sparsegpt(matrix, gram, choose, every=every, damping=damping)
        return pruned, values
    if config.criterion == "alps":
        start, pruned = admm(matrix, gram, partial(select, sparsity=sparsity, config=config), damping=damping)
        return pruned, reconstruct(matrix, pruned, gram, start=start, damping=damping)
    pruned = compute_mask(weight, entry, languages, sparsity, config)
    if config.refinement == "swap":
        trusted = shrink_gram(gram, config.refinement_shrinkage, config.refinement_ridge)
        pruned = refine_mask(matrix, pruned, trusted, run=None if config.kept_of is None else config.kept_of[1])
    if config.reconstruction == "none":
        return pruned, None
    return pruned, reconstruct(matrix, pruned, gram, damping=damping)


def select_part(scores: Tensor, first: int, sparsity: float, config: MWandaConfig) -> Tensor:
    """As `select`, where scores come part by part: the counts of the parts add up to that of the whole.

    Args:
        scores: Shape `(out, columns)`.
        first: Number of their first column in the matrix; the parts before it end there.
        sparsity: Share to prune.
        config: Its `pattern` and `group`.

    Returns:
        Boolean, shape `(out, columns)`, True where pruned.
    """
    if config.kept_of is not None:
        return n_of_m_mask(scores, *config.kept_of)
    by_row = config.group == "row"
    rows = scores if by_row else scores.reshape(1, -1)
    before = first if by_row else first * len(scores)
    count = int(sparsity * (before + rows.shape[1]) + 0.5) - int(sparsity * before + 0.5)
    return prune_lowest(rows, count).view(scores.shape)
