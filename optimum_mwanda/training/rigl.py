"""RigL: masks that move to where the gradient is large (Evci et al. 2020, arXiv 1911.11134)."""

import math

import torch
from torch import Tensor


def update_fraction(step: int, last_step: int, alpha: float = 0.3) -> float:
    """Which share of the kept weights is exchanged: alpha / 2 * (1 + cos(pi * t / T)) (section 3, "update schedule").

    Args:
        step: t.
        last_step: T, from which on masks stay as they are.
        alpha: The share at step 0.
    """
    return alpha / 2 * (1 + math.cos(math.pi * step / last_step)) if step < last_step else 0.0


def redraw_mask(
    weight: Tensor,
    gradient: Tensor,
    pruned: Tensor,
    fraction: float,
    run: int | None = None,
    largest: float = math.inf,
) -> Tensor:
    """Prunes the smallest of the kept weights, and takes back as many pruned ones whose gradients are largest.

    What was pruned just now is not taken back, nor is a weight whose gradient is 0, as in an expert that no token
    reached. The number of zeros is the same as before, in the whole and in every run; if a run has fewer pruned weights
    than are to go, it exchanges all of these. Among equals, the first goes or comes. A weight that is taken back starts
    from 0.

    Args:
        weight: Shape `(out, in)`, or any other.
        gradient: Of the dense weight, the same shape: that of pruned weights too.
        pruned: Boolean, the same shape, True where pruned.
        fraction: Share of the kept weights to exchange, as `update_fraction` gives it; the count is rounded down.
        run: How many consecutive entries keep their number of zeros: M for a pattern N:M along the last dimension, the
            length of a row for masks per row, None for the whole matrix.
        largest: Kept weights with a larger magnitude stay.

    Returns:
        Boolean, the same shape, True where pruned from now on.

    Raises:
        ValueError: If the runs do not fill the rows.
    """
    run = weight.numel() if run is None else run
    if run != weight.numel() and weight.shape[-1] % run:
        raise ValueError(f"Rows of {weight.shape[-1]} entries cannot be cut into runs of {run}: give a divisor.")
    rows = pruned.reshape(-1, run)
    magnitude = weight.detach().abs().reshape(-1, run).masked_fill(rows, torch.inf)
    slopes = gradient.detach().abs().reshape(-1, run)
    # Only so many of a run can go as there are to take their places.
    can_go = _lowest(magnitude, torch.minimum((rows & (slopes > 0)).sum(1), (~rows).sum(1))) & (magnitude <= largest)
    total = min(int(fraction * int((~rows).sum())), int(can_go.sum()))
    candidates = magnitude.masked_fill(~can_go, torch.inf).reshape(1, -1)
    gone = _lowest(candidates, torch.tensor([total], device=rows.device)).view_as(rows)
    back = _lowest((-slopes).masked_fill(~rows, torch.inf), gone.sum(1))
    return ((rows | gone) & ~back).view_as(pruned)


def _lowest(scores: Tensor, counts: Tensor) -> Tensor:
    """Marks the `counts[row]` lowest scores of each row; among equal ones the leftmost."""
    order = scores.argsort(dim=1, stable=True)
    chosen = torch.arange(scores.shape[1], device=scores.device) < counts[:, None]
    return torch.zeros_like(chosen).scatter_(1, order, chosen)
