"""How the weights of a step change; several processes decide it together."""

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from ..calibration.statistics import WeightStatistics
from ..configuration import MWandaConfig
from ..modeling.bits import pack_bits
from ..modeling.sharding import shares_parameters
from ..modeling.weights import PrunableWeight
from ..processes.dealing import even_part, owners
from ..processes.group import Processes, sharing
from ..pruning.same_input import sharing_inputs
from ..pruning.sensitivity import Sensitivity
from ..pruning.sparsity_plan import SparsityPlan
from ..pruning.update import mask_and_values
from ..registry import CRITERIA

T = TypeVar("T")

_MANY = 4
"""With so many matrices for every process, all have about the same to do."""

Change: TypeAlias = tuple[Tensor, Tensor | None]
"""Mask, True where pruned, and new values, if there are any."""


def shared_by_holders(method: Callable[..., T]) -> Callable[..., T]:
    """Lets processes that hold parts of a model, the first argument of a method, do its work together."""

    @functools.wraps(method)
    def together(self: Any, model: Any, *args: Any, **kwargs: Any) -> T:
        is_shared_out = isinstance(model, nn.Module) and shares_parameters(model)
        with sharing() if is_shared_out else nullcontext():
            return method(self, model, *args, **kwargs)

    return together


class Decisions:
    """Decides how weights change; where that takes long, every process does it for a part of them, and tells all.

    Args:
        plan: The sparsity of every block.
        language_weights: Weight of every language.
        config: The settings.
        processes: Those that share the work.
        sensitivities: Name of a weight to how much the loss depends on its rows, where that is known.
    """

    def __init__(
        self,
        plan: SparsityPlan,
        language_weights: Tensor | None,
        config: MWandaConfig,
        processes: Processes,
        sensitivities: Mapping[str, Sensitivity] | None = None,
    ) -> None:
        self._plan, self._language_weights, self._config = plan, language_weights, config
        self._sensitivities = sensitivities or {}
        self._processes = processes
        self._digest = hashlib.sha256()

    def of(
        self,
        weights: Sequence[PrunableWeight],
        entries: Mapping[str, WeightStatistics],
        grams: Mapping[str, Tensor],
    ) -> Iterator[tuple[PrunableWeight, Change]]:
        """Yields each weight with its change.

        Args:
            weights: Weights of a step; the same on every process.
            entries: Name of a weight to its statistics, if there are any.
            grams: Name of a weight to the Gram matrix of its input, which may hold anything afterwards. With one,
                processes share the work; without, each does it all, which is quicker than to send masks around.
        """
        with sharing_inputs(given_away=grams.values() if CRITERIA[self._config.criterion].overwrites else ()):
            yield from self._of(weights, entries, grams)

    def _of(
        self,
        weights: Sequence[PrunableWeight],
        entries: Mapping[str, WeightStatistics],
        grams: Mapping[str, Tensor],
    ) -> Iterator[tuple[PrunableWeight, Change]]:
        def decide(weight: PrunableWeight, rows: slice = slice(None)) -> Change:
            entry, gram, sparsity = entries.get(weight.name), grams.get(weight.name), self._plan.of(weight)
            options = (self._language_weights, sparsity, self._config, rows, self._sensitivities.get(weight.name))
            return mask_and_values(weight, entry, gram, *options)

        long = [weight for weight in weights if weight.name in grams and self._processes.size > 1]
        own = {name: rows for name, rows in self._own_rows(long).items() if rows.start < rows.stop}
        # All are gathered before the first one is decided, as an error of one process ends its deciding.
        readable = [whole for weight in long for whole in [weight.gathered()] if weight.name in own]
        decided = {weight.name: decide(weight, own[weight.name]) for weight in readable}
        counts = torch.tensor([weight.name in decided and decided[weight.name][1] is not None for weight in long]).int()
        with_values = self._processes.add_up([counts])[0].tolist() if long else []
        has_values = dict(zip((weight.name for weight in long), with_values, strict=True))
        for weight in weights:
            if weight.name in has_values:
                part = decided.pop(weight.name, None)
                change = self._joined(weight, own.get(weight.name, slice(0, 0)), part, bool(has_values[weight.name]))
            else:
                change = decide(weight.gathered())
            self._note(change)
            yield weight, change

    def check(self) -> None:
        """Checks that all processes have decided alike.

        Raises:
            ValueError: If they have not.
        """
        self._processes.check_alike(
            {"which weights they prune": self._digest.hexdigest()},
            "Start them on machines of one kind, with the same versions of torch and of its backends.",
        )

    def _own_rows(self, weights: Sequence[PrunableWeight]) -> dict[str, slice]:
        """The rows of each weight about which this process decides.

        Rows are refined and reconstructed independently of each other, so every process gets some of each matrix. A
        solver, and swaps that see how rows are coupled, need whole matrices, and many matrices need not be cut.
        """
        rank, size = self._processes.rank, self._processes.size
        needs_whole = CRITERIA[self._config.criterion].solve is not None or self._config.couples_rows
        if not needs_whole and len(weights) < _MANY * size:
            parts = {weight.name: even_part(weight.out_features, rank, size) for weight in weights}
            return {name: slice(part.start, part.stop) for name, part in parts.items()}
        found = zip(weights, owners([_cost(weight) for weight in weights], size), strict=True)
        return {weight.name: slice(0, weight.out_features if owner == rank else 0) for weight, owner in found}

    def _joined(self, weight: PrunableWeight, rows: slice, part: Change | None, has_values: bool) -> Change:
        """What all processes together have decided about a weight; the bytes of the others' rows are 0 in each."""
        shape, dtype, device = weight.shape, weight.holder.dtype, weight.device
        pruned = torch.zeros(shape, dtype=torch.uint8, device=device)
        values = torch.zeros(shape if has_values else (0, 0), dtype=dtype, device=device)
        if part is not None:
            pruned[rows] = part[0].to(torch.uint8)
            if part[1] is not None:
                values[rows] = part[1].to(dtype)
        # Values come first: the bytes of a mask may end where no value can begin.
        sent, pruned = self._processes.add_up([values.view(torch.uint8), pruned])
        return pruned.bool(), sent.view(dtype) if has_values else None

    def _note(self, change: Change) -> None:
        if self._processes.size == 1:
            return
        for tensor in (pack_bits(change[0]), change[1]):
            if tensor is not None:
                self._digest.update(tensor.contiguous().view(torch.uint8).cpu().numpy().data)


def _cost(weight: PrunableWeight) -> float:
    """Operations, but for a factor: products of the matrix with the Gram matrix, and the factors of the latter."""
    rows, columns = weight.shape
    return float(columns) ** 2 * (rows + columns)
