"""From the settings to the mask of one weight, and to the new values of what stays."""

from functools import partial

from torch import Tensor

from ..calibration.statistics import WeightStatistics
from ..configuration import MWandaConfig
from ..modeling.weights import PrunableWeight, check_finite
from .reconstruction import admm, reconstruct, sparsegpt
from .refinement import refine_mask, shrink_gram
from .scoring import compute_mask, select


def mask_and_values(
    weight: PrunableWeight,
    entry: WeightStatistics | None,
    gram: Tensor | None,
    languages: Tensor,
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
    choose = partial(select, sparsity=sparsity, config=config)
    if config.criterion == "sparsegpt":
        every = None if config.kept_of is None else config.kept_of[1]
        values, pruned = sparsegpt(matrix, gram, choose, every=every, damping=damping)
        return pruned, values
    if config.criterion == "alps":
        start, pruned = admm(matrix, gram, choose, damping=damping)
        return pruned, reconstruct(matrix, pruned, gram, start=start, damping=damping)
    pruned = compute_mask(weight, entry, languages, sparsity, config)
    if config.refinement == "swap":
        trusted = shrink_gram(gram, config.refinement_shrinkage, config.refinement_ridge)
        pruned = refine_mask(matrix, pruned, trusted, run=None if config.kept_of is None else config.kept_of[1])
    if config.reconstruction == "none":
        return pruned, None
    return pruned, reconstruct(matrix, pruned, gram, damping=damping)
