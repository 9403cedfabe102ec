"""How the weights of a step change; several processes decide it together."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from ..calibration.statistics import WeightStatistics
from ..configuration import MWandaConfig
from ..modeling.bits import pack_bits, unpack_bits
from ..modeling.sharding import gathered
from ..modeling.weights import PrunableWeight
from ..processes.dealing import owners
from ..processes.group import Processes
from ..pruning.allocation import SparsityPlan
from ..pruning.update import mask_and_values

Change: TypeAlias = tuple[Tensor, Tensor | None]
"""Mask, True where pruned, and new values, if there are any."""


class Decisions:
    """Decides how weights change; where that takes long, every process does it for a part of them, and tells all.

    Args:
        plan: The sparsity of every block.
        language_weights: Weight of every language.
        config: The settings.
        processes: Those that share the work.
    """

    def __init__(
        self, plan: SparsityPlan, language_weights: Tensor | None, config: MWandaConfig, processes: Processes
    ) -> None:
        self._plan, self._language_weights, self._config = plan, language_weights, config
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
            grams: Name of a weight to the Gram matrix of its input. With one, a single process decides; without, every
                process does, which is quicker than to send masks around.
        """

        def decide(weight: PrunableWeight) -> Change:
            entry, gram, sparsity = entries.get(weight.name), grams.get(weight.name), self._plan[weight.block]
            return mask_and_values(weight, entry, gram, self._language_weights, sparsity, self._config)

        if not grams:
            for weight in weights:
                with gathered([weight.module]):
                    change = decide(weight)
                self._note(change)
                yield weight, change
            return
        if self._processes.size == 1:
            for weight in weights:
                yield weight, decide(weight)
            return
        long = [weight for weight in weights if weight.name in grams]
        owner = dict(zip((w.name for w in long), owners([_cost(w) for w in long], self._processes.size), strict=True))
        own = {weight.name: decide(weight) for weight in long if owner[weight.name] == self._processes.rank}
        has_values = torch.tensor([weight.name in own and own[weight.name][1] is not None for weight in long]).int()
        (has_values,) = self._processes.add_up([has_values])
        with_values = {weight.name for weight, each in zip(long, has_values.tolist(), strict=True) if each}
        for weight in weights:
            if weight.name in owner:
                change = self._send(weight, own.pop(weight.name, None), owner[weight.name], weight.name in with_values)
            else:
                change = decide(weight)
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

    def _send(self, weight: PrunableWeight, change: Change | None, owner: int, has_values: bool) -> Change:
        matrix = weight.matrix
        packed = torch.empty((matrix.numel() + 7) // 8, dtype=torch.uint8, device=matrix.device)
        if change is not None:
            packed = pack_bits(change[0])
        packed = self._processes.from_owner(packed, owner)
        pruned = unpack_bits(packed, matrix.shape) if change is None else change[0]
        if not has_values:
            return pruned, None
        values = None if change is None else change[1]
        sent = torch.empty_like(matrix) if values is None else values.to(matrix.dtype)
        return pruned, self._processes.from_owner(sent.contiguous(), owner)

    def _note(self, change: Change) -> None:
        if self._processes.size == 1:
            return
        for tensor in (pack_bits(change[0]), change[1]):
            if tensor is not None:
                self._digest.update(tensor.contiguous().view(torch.uint8).cpu().numpy().data)


def _cost(weight: PrunableWeight) -> float:
    """Operations, but for a factor: products of the matrix with the Gram matrix, and the factors of the latter."""
    rows, columns = weight.matrix.shape
    return float(columns) ** 2 * (rows + columns)
