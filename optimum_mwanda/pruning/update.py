"""From the settings to the mask of one weight and the new values of its remaining entries."""

from torch import Tensor

from ..calibration.statistics import WeightStatistics
from ..configuration import MWandaConfig
from ..modeling.weights import PrunableWeight, check_finite
from ..registry import CRITERIA
from .joint_refinement import refine_jointly
from .reconstruction import reconstruct
from .refinement import refine_mask, shrink_gram
from .same_input import once_per_input
from .scoring import compute_mask
from .sensitivity import Sensitivity, row_factors

OUTPUT_SHRINKAGE, OUTPUT_RIDGE = 0.5, 0.5
"""As `refinement_shrinkage` and `refinement_ridge`, but for how rows are coupled."""

_shrunk = once_per_input(shrink_gram)


def mask_and_values(
    weight: PrunableWeight,
    entry: WeightStatistics | None,
    gram: Tensor | None,
    language_weights: Tensor | None,
    sparsity: float,
    config: MWandaConfig,
    rows: slice = slice(None),
    sensitivity: Sensitivity | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Decides which entries of one weight to prune, and the values of the others.

    Args:
        weight: The weight.
        entry: Its statistics, if there are any.
        gram: Pooled Gram matrix of its input, shape `(in, in)`; without it no value is changed, and a solver
            leaves the choice to its fallback.
        language_weights: Weight of every language.
        sparsity: Share to prune.
        config: The settings.
        rows: Which rows to refine and reconstruct; for a solver, for swaps that see how rows are coupled, and without
            a Gram matrix, all.
        sensitivity: How much the loss depends on its rows, if that is known.

    Returns:
        Boolean mask of shape `(out, in)`, or of these rows, True where pruned, and the new values, or None if the
        remaining entries keep their values.

    Raises:
        FloatingPointError: If the weight or the Gram matrix holds NaN or infinite values, or the Gram matrix is not
            positive definite with any of the dampings.
    """
    factors = None
    if sensitivity is not None and config.weighs_rows:
        factors = row_factors(sensitivity.rows, config.sensitivity_exponent).to(weight.device)
    if gram is None:
        return compute_mask(weight, entry, language_weights, sparsity, config, factors), None
    check_finite(weight)
    criterion = CRITERIA[config.criterion]
    solved = _shrunk(gram, config.reconstruction_shrinkage, 0) if config.reconstruction_shrinkage else gram
    if criterion.solve is not None:
        weighed = () if factors is None else (factors[rows],)
        pruned, values = criterion.solve(weight.matrix[rows], solved, sparsity, config, *weighed)
        return pruned, values
    damping: float = config.damping  # type: ignore[assignment]
    pruned = compute_mask(weight, entry, language_weights, sparsity, config, factors)[rows]
    matrix = weight.matrix[rows]
    if config.swaps:
        trusted = shrink_gram(gram, config.refinement_shrinkage, config.refinement_ridge)
        run = None if config.kept_of is None else config.kept_of[1]
        if sensitivity is None or sensitivity.factor is None:
            pruned = refine_mask(matrix, pruned, trusted, run=run)
        else:
            coupling = shrink_gram(sensitivity.factor.to(gram), OUTPUT_SHRINKAGE, OUTPUT_RIDGE)
            pruned = refine_jointly(matrix, pruned, trusted, coupling, run=run)
    if not config.updates_matrices:
        return pruned, None
    return pruned, reconstruct(matrix, pruned, solved, damping=damping)
