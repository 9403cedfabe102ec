"""Training what pruning has left, as a pure function: Adam over batches that are given by their numbers."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Values = Mapping[str, Tensor]
Gradients = Callable[[Values, int], Sequence[Tensor]]
Error = Callable[[Values], float]


class Outcome(NamedTuple):
    """What training has brought, as it is judged by text that is not trained on.

    Attributes:
        epoch: The epoch that was best, counted from 1; 0 for the start.
        before: The error before training.
        after: The error after the best epoch.
    """

    epoch: int
    before: float
    after: float


def tune(
    start: Values,
    kept: Values,
    gradients: Gradients,
    error: Error,
    batches: Sequence[int],
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
) -> tuple[dict[str, Tensor], Outcome]:
    """Trains some entries of some matrices with Adam; the others stay as they are.

    The learning rate falls to zero along a cosine. Values are kept in float32 or, if they are wider, in their type, and
    rounded at the end. Every epoch is judged by values that are rounded, and the best one is kept.

    Args:
        start: Name to values before training.
        kept: Name to a boolean tensor, True where an entry is trained.
        gradients: Takes values and the number of a batch, and gives the gradient of each of the matrices, in their
            order.
        error: Takes rounded values and gives the error on text that is not trained on.
        batches: Numbers of the batches of an epoch, which come in another order each time.
        epochs: How often to go through all batches.
        learning_rate: The rate in the beginning.
        seed: For the order of the batches.

    Returns:
        New values, of the shapes and types of the old ones, which are the old ones if no epoch was better or the error
        is not finite before training; and the outcome.
    """
    trained = {
        name: values.to(torch.promote_types(values.dtype, torch.float32), copy=True).requires_grad_()
        for name, values in start.items()
    }
    optimizer = torch.optim.Adam(trained.values(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    generator = torch.Generator().manual_seed(seed)
    best, chosen = dict(start), 0
    before = least = error(best)
    for epoch in range(1, epochs + 1 if math.isfinite(before) else 1):
        for number in torch.randperm(len(batches), generator=generator).tolist():
            found = gradients(trained, batches[number])
            for (name, values), gradient in zip(trained.items(), found, strict=True):
                values.grad = torch.where(kept[name], gradient, 0)
            optimizer.step()
            schedule.step()
        rounded = {name: values.detach().to(start[name].dtype, copy=True) for name, values in trained.items()}
        if (reached := error(rounded)) < least:
            least, chosen, best = reached, epoch, rounded
    return best, Outcome(chosen, before, least)
