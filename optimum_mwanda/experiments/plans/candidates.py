"""What a search for a plan tries: sparsities of matrices that exchange weights with each other."""

import dataclasses
import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...modeling.weights import PrunableWeight, Weights
from ...pruning.sparsity_plan import BlockPlan, SparsityPlan

Sparsities = tuple[float, ...]
"""One per unit, in their order."""

_LONGEST = 1.5
"""The most that a unit moves at once, in steps."""
_HALVINGS = 100
"""How often the range of prices is halved."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """Matrices that get the same sparsity: one, or the same one of all experts of a layer.

    Attributes:
        block: Module path of their block.
        weights: The matrices.
    """

    block: str
    weights: tuple[PrunableWeight, ...]

    @property
    def numel(self) -> int:
        """Number of weights."""
        return sum(weight.numel for weight in self.weights)


def find_units(weights: Weights) -> list[Unit]:
    """The units of a model, in the order of its blocks."""
    found: dict[tuple[str, str], list[PrunableWeight]] = {}
    for block, matrices in weights.items():
        for weight in matrices:
            path = weight.name.removeprefix(f"{block}.")
            if (expert := weight.expert_name) is not None:
                path = f"{expert.rpartition('.')[0]}.*{weight.name[len(expert) :]}"
            found.setdefault((block, path), []).append(weight)
    return [Unit(block, tuple(matrices)) for (block, _), matrices in found.items()]


def start_of(plan: SparsityPlan, units: Sequence[Unit]) -> Sparsities:
    """The sparsities that a plan gives the units."""
    return tuple(plan.of(unit.weights[0]) for unit in units)


def mutate(
    sparsities: Sparsities,
    units: Sequence[Unit],
    rng: random.Random,
    step: float,
    bounds: tuple[float, float],
) -> Sparsities:
    """Lets one to three pairs of units exchange weights, so that the number of pruned weights stays.

    Args:
        sparsities: Those to begin with.
        units: The units.
        rng: Chooses the pairs, and by how much.
        step: Sparsity that the smaller unit of a pair usually gains or loses; half and twice as much are tried too.
        bounds: Lowest and highest sparsity of a unit.
    """
    found, (low, high) = list(sparsities), bounds
    for _ in range(rng.choice((1, 1, 2, 3))):
        more, less = rng.sample(range(len(units)), 2)
        moved = step * rng.choice((0.5, 1.0, 2.0)) * min(units[more].numel, units[less].numel)
        raised, lowered = found[more] + moved / units[more].numel, found[less] - moved / units[less].numel
        if raised <= high and lowered >= low:
            found[more], found[less] = round(raised, 12), round(lowered, 12)
    return tuple(found)


def descend(
    sparsities: Sparsities,
    units: Sequence[Unit],
    slopes: Sequence[float],
    step: float,
    bounds: tuple[float, float],
) -> Sparsities:
    """Moves weights from units where pruning costs much to those where it costs little; the number pruned stays.

    Costs grow about exponentially with sparsity, so a unit moves by the logarithm of what it costs: one that costs `e`
    times the price at which nothing moves loses `step`.

    Args:
        sparsities: Those to begin with.
        units: The units.
        slopes: What pruning one more weight of each unit costs; if nothing, it counts as much as the cheapest of
            the others.
        step: How far to go. No unit moves more than one and a half times this.
        bounds: Lowest and highest sparsity of a unit.
    """
    sizes = torch.tensor([unit.numel for unit in units], dtype=torch.float64)
    start, costs = torch.tensor(sparsities, dtype=torch.float64), torch.tensor(slopes, dtype=torch.float64)
    if not (costs > 0).any():
        return sparsities
    logs = costs.clamp_min(costs[costs > 0].min()).log()

    def moved(price: float) -> Tensor:
        ways = (step * (price - logs)).clamp(-_LONGEST * step, _LONGEST * step)
        return (start + ways).clamp(*bounds)

    low, high = float(logs.min()) - _LONGEST, float(logs.max()) + _LONGEST
    for _ in range(_HALVINGS):
        price = (low + high) / 2
        pruned = sizes @ (moved(price) - start)
        low, high = (price, high) if pruned < 0 else (low, price)
    return tuple(round(sparsity, 12) for sparsity in moved(price).tolist())


def to_plan(
    sparsities: Sparsities,
    units: Sequence[Unit],
    weights: Weights,
    importance: Mapping[str, float | None],
    target: float,
) -> SparsityPlan:
    """The plan that gives every unit its sparsity.

    Args:
        sparsities: One per unit.
        units: The units.
        weights: Module path of a block to its weights.
        importance: Module path of a block to what the plan says about it.
        target: Sparsity asked for.
    """
    of_weight = {
        weight.name: sparsity for unit, sparsity in zip(units, sparsities, strict=True) for weight in unit.weights
    }
    blocks = []
    for block, matrices in weights.items():
        size = sum(weight.numel for weight in matrices)
        own = {weight.name: of_weight[weight.name] for weight in matrices}
        mean = sum(weight.numel * own[weight.name] for weight in matrices) / size
        blocks.append(BlockPlan(block, size, importance.get(block), round(mean, 12), own))
    return SparsityPlan(target, "search", tuple(blocks))
