"""How good a plan is: the model is pruned so, by scores alone, and compared with the dense one."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ...calibration.statistics import CalibrationStatistics
from ...configuration import MWandaConfig
from ...evaluation.divergence import Divergence, mean_over_parts
from ...modeling.bits import zero_marked
from ...modeling.weights import PrunableWeight
from ...pruning.experts_policy import settle
from ...pruning.scoring import compute_mask, weigh_languages
from ...pruning.sensitivity import find_sensitivities, row_factors
from ...storage.journal import Journal
from ..dense_state import DenseState
from .candidates import Sparsities, Unit

_KIND = "divergence"
_Found = TypeVar("_Found")
_MARGIN = 0.03
"""Sparsity that a matrix gains or loses if all that is near its cut is pruned, or brought back."""


def remembered(journal: Journal | None, kind: str, key: Any, find: Callable[[], _Found]) -> _Found:
    """What is found, or what a search that was stopped has found already.

    Args:
        journal: Where it is kept, if anywhere.
        kind: What sort of thing it is.
        key: What it depends on, as JSON values.
        find: Finds it, as JSON values.
    """
    if journal is None:
        return find()
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    if journal.find(kind, name) is None:
        journal.put(kind, name, {}, found := find())
        return found
    known: _Found = journal.facts(kind, name)
    return known


class Measured(NamedTuple):
    """How far a plan takes the model from the dense one: language to divergence, for each part of the text."""

    parts: tuple[Mapping[str, float], ...]

    @property
    def languages(self) -> dict[str, float]:
        """Language to its mean over the parts that have it."""
        return mean_over_parts(self.parts)


class Masked:
    """Brings the model to the sparsities of a plan, and changes only the matrices whose sparsity differs."""

    def __init__(
        self, state: DenseState, units: Sequence[Unit], statistics: CalibrationStatistics, config: MWandaConfig
    ) -> None:
        self._state, self._units, self._config = state, units, config
        weights = [weight for unit in units for weight in unit.weights]
        self._entries, _ = settle(weights, statistics.weights, {}, config)
        self._language_weights = weigh_languages(config, statistics.tokens)
        known = find_sensitivities(statistics, {}, config)
        self._factors = {name: row_factors(each.rows, config.sensitivity_exponent) for name, each in known.items()}
        self._now: list[float | None] = [None] * len(units)

    def become(self, sparsities: Sparsities) -> None:
        """Prunes the model so."""
        for number, (unit, sparsity) in enumerate(zip(self._units, sparsities, strict=True)):
            if sparsity == self._now[number]:
                continue
            for weight in unit.weights:
                self._state.restore_weight(weight)
                zero_marked(weight.matrix, self._mask(weight, sparsity))
            self._now[number] = sparsity

    def margin(self, weight: PrunableWeight, sparsity: float) -> tuple[Tensor, Tensor]:
        """The weights of a matrix that would be pruned next at a sparsity, and those that were pruned last.

        Returns:
            Their places in the matrix, as if it were one row, and their dense values.
        """
        now = weight.matrix.clone()
        self._state.restore_weight(weight)
        width, places = _MARGIN, torch.empty(0)
        while not len(places):  # a short row has none that are so near
            low, high = max(sparsity - width, 0.0), min(sparsity + width, 1.0)
            places = (self._mask(weight, high) & ~self._mask(weight, low)).flatten().nonzero()[:, 0]
            width *= 2
        values = weight.matrix.flatten()[places]
        weight.matrix.copy_(now)
        return places, values

    def _mask(self, weight: PrunableWeight, sparsity: float) -> Tensor:
        """What is pruned of a matrix that is dense now."""
        known = (self._entries.get(weight.name), self._language_weights)
        return compute_mask(weight, *known, sparsity, self._config, self._factors.get(weight.name))


class Fitness:
    """Measures each plan once, even if the search is stopped and goes on."""

    def __init__(
        self,
        divergence: Divergence,
        masked: Masked,
        language_weights: Mapping[str, float],
        worst: float,
        journal: Journal | None,
    ) -> None:
        self._divergence, self._masked, self._journal = divergence, masked, journal
        self._language_weights, self._worst = language_weights, worst

    def of(self, sparsities: Sparsities) -> Measured:
        """Measures a plan."""
        return Measured(tuple(self._measure(sparsities, part) for part in range(self._divergence.parts)))

    def better(self, sparsities: Sparsities, than: Measured) -> Measured | None:
        """Measures a plan if it is better than another; if it is worse on the first part, only there."""
        first = self._measure(sparsities, 0)
        if self.value(first) > self.value(than.parts[0]):
            return None
        rest = (self._measure(sparsities, part) for part in range(1, self._divergence.parts))
        found = Measured((first, *rest))
        return found if self.value(found.languages) < self.value(than.languages) else None

    def _measure(self, sparsities: Sparsities, part: int) -> dict[str, float]:
        """Measures a plan on a part of the text, or tells what is known of it."""

        def measure() -> dict[str, float]:
            self._masked.become(sparsities)
            return self._divergence.measure(part)

        return remembered(self._journal, _KIND, [sparsities, part], measure)

    def value(self, languages: Mapping[str, float]) -> float:
        """What the search makes as small as it can, of the divergence in each language."""
        return sum(weight * languages[language] for language, weight in self.weights(languages).items())

    def weights(self, languages: Mapping[str, float]) -> dict[str, float]:
        """What each language counts in `value`; they sum to 1, unless the languages there weigh nothing.

        Args:
            languages: Language to its divergence.
        """
        total = sum(self._language_weights[language] for language in languages) or 1.0
        found = {name: (1 - self._worst) * self._language_weights[name] / total for name in languages}
        found[max(languages, key=languages.__getitem__)] += self._worst
        return found
