"""Training what pruning has left, or the choice of it, as pure functions: Adam over batches given by their numbers."""

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Values = Mapping[str, Tensor]
Gradients = Callable[[Values, int], Sequence[Tensor]]
Error = Callable[[Values], float]

_DOUBT = 0.05
"""Scores of the weights that the first masks keep and prune are at least twice this far apart."""


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


class Trained(abc.ABC):
    """What is trained of some matrices.

    Attributes:
        parameters: What the optimizer changes.
    """

    parameters: Sequence[Tensor]

    @abc.abstractmethod
    def values(self) -> dict[str, Tensor]:
        """Name to the values with which a block runs, in float32 or wider; gradients of them are needed."""

    @abc.abstractmethod
    def rounded(self) -> dict[str, Tensor]:
        """The same, in their own type."""

    @abc.abstractmethod
    def descend(self, gradients: Sequence[Tensor]) -> None:
        """Gives the parameters their gradients, from those of the values."""


class Kept(Trained):
    """Some entries of some matrices; the others stay as they are.

    Args:
        start: Name to values before training.
        kept: Name to a boolean tensor, True where an entry is trained.
    """

    def __init__(self, start: Values, kept: Values) -> None:
        self._types = {name: values.dtype for name, values in start.items()}
        self._kept = kept
        self._trained = {name: _wide(values, copy=True).requires_grad_() for name, values in start.items()}
        self.parameters = [*self._trained.values()]

    def values(self) -> dict[str, Tensor]:
        """Name to the values with which a block runs."""
        return self._trained

    def rounded(self) -> dict[str, Tensor]:
        """The same, in their own type."""
        return {name: values.detach().to(self._types[name], copy=True) for name, values in self._trained.items()}

    def descend(self, gradients: Sequence[Tensor]) -> None:
        """Takes the gradients where entries are trained."""
        for (name, values), gradient in zip(self._trained.items(), gradients, strict=True):
            values.grad = torch.where(self._kept[name], gradient, 0)


class Group(NamedTuple):
    """Entries of which a fixed number is kept in every row.

    Attributes:
        name: Name of the tensor that holds them.
        view: Shows a matrix of shape `(out, in)` in that tensor or another one of its shape.
        size: How many entries of the matrix, in row-major order, compete with each other.
    """

    name: str
    view: Callable[[Tensor], Tensor]
    size: int


class Choice(Trained):
    """Which entries of some matrices are kept, while none changes its value.

    Every entry has a score, and of each group the highest ones are kept, as many as before. The gradient of a score is
    that of the value times the weight, also where the entry is pruned, as if scores were factors of the weights
    (straight-through estimator).

    Args:
        start: Name to the values of the dense model.
        kept: Name to a boolean tensor, True where an entry is kept before training.
        groups: Entries that compete; what is in none of them stays.
    """

    def __init__(self, start: Values, kept: Values, groups: Sequence[Group]) -> None:
        self._start, self._groups = start, groups
        self._wide = {name: _wide(values) for name, values in start.items()}
        self._scores = {name: torch.zeros_like(values) for name, values in self._wide.items()}
        self._counts = []
        for name, view, size in groups:
            chosen = view(kept[name]).reshape(-1, size)
            self._counts.append(int(chosen.sum(1).max()))
            scores = _first_scores(view(self._wide[name]).reshape(-1, size), chosen)
            matrix = view(self._scores[name])
            matrix.copy_(scores.view(matrix.shape))
        self.parameters = [*self._scores.values()]

    def values(self) -> dict[str, Tensor]:
        """Name to the values with which a block runs."""
        return {name: masked.requires_grad_() for name, masked in self._masked(self._wide).items()}

    def rounded(self) -> dict[str, Tensor]:
        """The same, in their own type."""
        return self._masked(self._start)

    def descend(self, gradients: Sequence[Tensor]) -> None:
        """Takes the gradients of the values times the weights."""
        for (name, scores), gradient in zip(self._scores.items(), gradients, strict=True):
            scores.grad = gradient * self._wide[name]

    def _masked(self, values: Values) -> dict[str, Tensor]:
        masked = {name: each.clone() for name, each in values.items()}
        for (name, view, size), count in zip(self._groups, self._counts, strict=True):
            scores = view(self._scores[name]).reshape(-1, size)
            pruned = torch.ones_like(scores, dtype=torch.bool)
            pruned.scatter_(1, scores.topk(count, dim=1).indices, False)
            matrix = view(masked[name])
            matrix.masked_fill_(pruned.view(matrix.shape), 0)
        return masked


def tune(
    start: Values,
    trained: Trained,
    gradients: Gradients,
    error: Error,
    batches: Sequence[int],
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
) -> tuple[dict[str, Tensor], Outcome]:
    """Trains with Adam.

    The learning rate falls to zero along a cosine. Every epoch is judged by values that are rounded, and the best one
    is kept.

    Args:
        start: Name to values before training.
        trained: What is trained of them.
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
    optimizer = torch.optim.Adam(trained.parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    generator = torch.Generator().manual_seed(seed)
    best, chosen = dict(start), 0
    before = least = error(best)
    for epoch in range(1, epochs + 1 if math.isfinite(before) else 1):
        for number in torch.randperm(len(batches), generator=generator).tolist():
            trained.descend(gradients(trained.values(), batches[number]))
            optimizer.step()
            schedule.step()
        rounded = trained.rounded()
        if (reached := error(rounded)) < least:
            least, chosen, best = reached, epoch, rounded
    return best, Outcome(chosen, before, least)


def _wide(values: Tensor, copy: bool = False) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32), copy=copy)


def _first_scores(weights: Tensor, kept: Tensor) -> Tensor:
    """Scores by which the same entries are kept; the larger a weight is, the nearer it is to being kept, or the further
    from being pruned.

    Args:
        weights: Shape `(groups, size)`.
        kept: Boolean, of the same shape.
    """
    rank = weights.abs().argsort(dim=1, stable=True).argsort(dim=1).to(weights) / weights.shape[1]
    return torch.where(kept, _DOUBT + rank, rank - 1 - _DOUBT)
