"""From scores to the entries to prune, by the pattern and the group in the settings."""

from torch import Tensor

from ..configuration import MWandaConfig
from .masks import n_of_m_mask, prune_lowest, unstructured_mask


def select(scores: Tensor, sparsity: float, config: MWandaConfig) -> Tensor:
    """Marks the lowest scores by the pattern and the group in the settings; boolean, True where pruned."""
    if config.kept_of is not None:
        return n_of_m_mask(scores, *config.kept_of)
    return unstructured_mask(scores, sparsity, config.group)


def select_part(scores: Tensor, first: int, sparsity: float, config: MWandaConfig) -> Tensor:
    """As `select`, but for scores that come part by part: the counts of the parts add up to that of the whole.

    Args:
        scores: Shape `(out, columns)`.
        first: Number of their first column in the matrix, where the part before ends.
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
