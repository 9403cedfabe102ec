"""What it would cost to prune a little more of each matrix, from one pass back through the pruned model."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...evaluation.divergence import Divergence
from ...modeling.blocks import find_blocks, without_gradients
from ...modeling.forwards import recomputed
from ...modeling.output_gradients import at_some_scale
from ...modeling.weights import PrunableWeight
from ...storage.journal import Journal
from .candidates import Sparsities, Unit
from .fitness import Masked, remembered

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_KIND = "slopes"


class Slopes:
    """Finds for each unit how the divergence grows with every weight that is pruned.

    Pruning a weight `w` of a dense model changes the divergence by `-g w` to first order, `g` being its gradient in the
    pruned model, and bringing one back by `g w`. The slope of a unit is the mean of `-g w` over the weights that the
    score ranks nearest to where the unit is cut now.

    Args:
        model: The model, in inference mode.
        blocks: As in the config.
        divergence: What is to be small, and on which text.
        masked: The model's masks.
        units: The units.
        journal: Where slopes are kept, so that a search that was stopped can go on.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        blocks: Sequence[str] | None,
        divergence: Divergence,
        masked: Masked,
        units: Sequence[Unit],
        journal: Journal | None,
    ) -> None:
        self._model, self._blocks, self._divergence = model, blocks, divergence
        self._masked, self._units, self._journal = masked, units, journal

    def at(self, sparsities: Sparsities, language_weights: Mapping[str, float]) -> list[float]:
        """The slope of every unit, in nats per token for each weight.

        Args:
            sparsities: The plan, to which the model is pruned.
            language_weights: What each language counts.

        Raises:
            FloatingPointError: If gradients are NaN or infinite.
        """

        def find() -> list[float]:
            self._masked.become(sparsities)
            return at_some_scale(self._model.dtype, lambda scale: self._measure(sparsities, language_weights, scale))

        return remembered(self._journal, _KIND, [sparsities, sorted(language_weights.items())], find)

    def _measure(self, sparsities: Sparsities, language_weights: Mapping[str, float], scale: float) -> list[float]:
        """Runs the pruned model forward and back; single tokens have gradients of about the scale."""
        scale *= self._divergence.tokens
        sums = [
            [_Sum(weight, *self._masked.margin(weight, sparsity)) for weight in unit.weights]
            for unit, sparsity in zip(self._units, sparsities, strict=True)
        ]
        blocks = find_blocks(self._model, self._blocks).values()
        with without_gradients(self._model), recomputed(blocks), _listening([each for unit in sums for each in unit]):
            self._divergence.differentiate(language_weights, scale)
        slopes = []
        for unit, found in zip(self._units, sums, strict=True):
            slope = sum(float(each.total) for each in found) / scale / sum(len(each.places) for each in found)
            if not math.isfinite(slope):
                raise FloatingPointError(
                    f"The gradient of the divergence with respect to {unit.weights[0].name!r} is not finite: load the "
                    "model in bfloat16 or float32, or lower the sparsity."
                )
            slopes.append(slope)
        return slopes


class _Sum:
    """Sums up `-g w` over some weights of a matrix.

    Args:
        weight: The matrix.
        places: Places of the weights in it, as if it were one row.
        values: Their dense values.
    """

    def __init__(self, weight: PrunableWeight, places: Tensor, values: Tensor) -> None:
        self.weight, self.places, self._values = weight, places, values.float()
        self.total = torch.zeros((), device=values.device)

    def add(self, gradient: Tensor) -> None:
        """Adds a batch, whose gradient has the shape of the parameter."""
        found = self.weight.view_of(gradient).flatten()[self.places].float()
        self.total -= torch.dot(found, self._values)


@contextmanager
def _listening(sums: Sequence[_Sum]) -> Iterator[None]:
    """Adds up each gradient as soon as it is there, and lets go of it, so that no two of them are in memory."""
    listeners: dict[nn.Parameter, list[_Sum]] = {}
    for each in sums:
        listeners.setdefault(each.weight.module.get_parameter(each.weight.parameter), []).append(each)

    def hear(parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        for each in listeners[parameter]:  # type: ignore[index]
            each.add(gradient)  # type: ignore[arg-type]

    handles = [
        parameter.requires_grad_().register_post_accumulate_grad_hook(hear)  # type: ignore[no-untyped-call]
        for parameter in listeners
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
