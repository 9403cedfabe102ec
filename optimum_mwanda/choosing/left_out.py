"""How good settings are for languages that did not decide masks and values, from Gram matrices alone."""

import dataclasses
import functools
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..calibration.statistics import WeightStatistics
from ..configuration import MWandaConfig
from ..data.chunks import CalibrationChunks
from ..modeling.block_source import BlockSource
from ..modeling.interrupts import check_interrupts
from ..modeling.weights import PrunableWeight, Weights
from ..pruning.experts_policy import settle
from ..pruning.reconstruction import layer_error
from ..pruning.sparsity_plan import SparsityPlan
from ..pruning.update import mask_and_values
from ..walking.block_by_block import BlockByBlock
from ..walking.store import HiddenStates
from ..walking.walk import Seen

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FOLDS = 3
"""How often languages are left out; each time other ones, about a third."""
ROWS = 64
"""About how many rows of each matrix to try candidates on; they lie evenly in it."""


def count_folds(parts: Sequence[Mapping[str, float]]) -> int:
    """How often parts are left out: those whose number leaves the same rest."""
    return min(FOLDS, len(parts))


def seen_by_part(
    model: "PreTrainedModel",
    weights: Weights,
    chunks: CalibrationChunks,
    parts: Sequence[Mapping[str, float]],
    config: MWandaConfig,
    source: BlockSource,
    store: Callable[[], HiddenStates],
) -> Generator[tuple[Sequence[PrunableWeight], list[Seen]], None, None]:
    """Goes through the dense model with the text of all parts side by side.

    Yields weights that are seen together, and what enters them in each part.
    """
    with ExitStack() as stack:
        walks = []
        for part in parts:
            own = dataclasses.replace(chunks, chunks={language: chunks.chunks[language] for language in part})
            walk = BlockByBlock(model, weights, own, part, config, source, store)
            walks.append(stack.enter_context(closing(walk.steps())))
        for steps in zip(*walks, strict=True):
            yield steps[0].weights, [step.look() for step in steps]


def judge(
    steps: Iterable[tuple[Sequence[PrunableWeight], list[Seen]]],
    parts: Sequence[Mapping[str, float]],
    candidates: Sequence[MWandaConfig],
    plan: SparsityPlan | None,
) -> list[tuple[float, float]]:
    """The errors of each candidate on seen languages and on the worst left-out part: means over matrices."""
    errors = []
    for weights, seen in steps:
        known = [_settled(weights, seen, parts, fold, candidates[0]) for fold in range(count_folds(parts))]
        for weight in weights:
            found = _errors_of(weight, seen, known, candidates, plan)
            if found is not None:
                errors.append(found)
    if not errors:
        raise ValueError("Regularisation cannot be tuned: no matrix that was tried is reached by every language.")
    return [(float(one), float(other)) for one, other in torch.stack(errors).mean(0)]


class _Deciding(NamedTuple):
    """What decides about weights while some parts are left out."""

    entries: Mapping[str, WeightStatistics]
    grams: Mapping[str, Tensor]
    language_weights: Tensor


def _errors_of(
    weight: PrunableWeight,
    seen: Sequence[Seen],
    known: Sequence[_Deciding],
    candidates: Sequence[MWandaConfig],
    plan: SparsityPlan | None,
) -> Tensor | None:
    """The errors of each candidate in one matrix, shape `(candidates, 2)`; None if it cannot be judged."""
    rows = slice(None, None, max(1, weight.out_features // ROWS))
    matrix = weight.matrix[rows].float()
    decided, energy = torch.zeros(len(candidates), dtype=torch.float64), 0.0
    left_out = []
    for fold, deciding in enumerate(known):
        gram, own = deciding.grams.get(weight.name), [part.grams.get(weight.name) for part in seen[fold :: len(known)]]
        judges = [(each, layer_error(matrix, each)) for each in own if each is not None]
        if gram is None or not judges or min(each for _, each in judges) <= 0:
            return None
        energy += layer_error(matrix, gram)
        found = []
        for number, config in enumerate(candidates):
            sparsity = config.target_sparsity if plan is None else plan.of(weight)
            entry = deciding.entries.get(weight.name)
            pruned, values = mask_and_values(weight, entry, gram, deciding.language_weights, sparsity, config, rows)
            change = matrix - (matrix.masked_fill(pruned, 0) if values is None else values.float())
            decided[number] += layer_error(change, gram)
            found.append(max(layer_error(change, each) / whole for each, whole in judges))
            check_interrupts()
        left_out.append(found)
    return torch.stack([decided / energy, torch.tensor(left_out, dtype=torch.float64).amax(0)], dim=1)


def _settled(
    weights: Sequence[PrunableWeight],
    seen: Sequence[Seen],
    parts: Sequence[Mapping[str, float]],
    fold: int,
    config: MWandaConfig,
) -> _Deciding:
    """What all parts show that are not left out, without experts that lack tokens."""
    others = [number for number in range(len(parts)) if number % count_folds(parts) != fold]
    entries = {name: _joined([seen[number].entries[name] for number in others]) for name in seen[0].entries}
    grams: dict[str, Tensor] = {}
    added: dict[tuple[int, ...], Tensor] = {}  # matrices that read the same input share a Gram matrix
    for weight in weights:
        found = [seen[number].grams[weight.name] for number in others if weight.name in seen[number].grams]
        if found:
            key = tuple(map(id, found))
            if key not in added:
                added[key] = functools.reduce(torch.add, found)
            grams[weight.name] = added[key]
    language_weights = torch.tensor([each for number in others for each in parts[number].values()], dtype=torch.float64)
    return _Deciding(*settle(weights, entries, grams, config), language_weights / language_weights.sum())


def _joined(entries: Sequence[WeightStatistics]) -> WeightStatistics:
    """The statistics of the languages of several folds."""
    return WeightStatistics(
        torch.cat([entry.tokens for entry in entries]),
        torch.cat([entry.square_sum for entry in entries]),
        {key: torch.cat([entry.active[key] for entry in entries]) for key in entries[0].active},
    )
