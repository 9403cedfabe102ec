"""How much a loss depends on the outputs of weights and blocks, summed up while backward passes run."""

from collections.abc import Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..modeling.output_gradients import watch_output_gradients
from ..modeling.weights import PrunableWeight
from ..utils import sum_dtype
from .gram import ProductCollector, Watched
from .reduction import Reduce


class RowCollector:
    """Sums up `Σ_t g_ti²` for every row of each weight, per language, while it is open.

    `g_ti` is the gradient of the loss with respect to output `i` at token `t`.

    Args:
        weights: Weights to watch.
        languages: Languages, in the order of the rows of the sums.
        scale: By what the loss was multiplied.
        reduce: Adds up the sums of all processes that share the calibration; None for a single process.
    """

    def __init__(
        self, weights: Sequence[PrunableWeight], languages: Sequence[str], scale: float, reduce: Reduce | None = None
    ) -> None:
        self._weights, self._languages, self._reduce = weights, list(languages), reduce
        self._sums = {
            w.name: torch.zeros(len(languages), w.out_features, dtype=sum_dtype(w.device), device=w.device)
            for w in weights
        }
        self._row = 0
        self._watch = watch_output_gradients({w.name: w.module for w in weights}, self._add, scale)

    def __enter__(self) -> "RowCollector":
        self._watch.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.__exit__(kind, error, trace)

    def start(self, language: str) -> None:
        """Counts everything from here on for one language.

        Raises:
            FloatingPointError: If a gradient of the previous language was NaN or infinite.
        """
        row = self._languages.index(language)
        if row != self._row:
            self._check_finite()
        self._row = row

    def finish(self) -> dict[str, Tensor]:
        """Returns the sums of all processes, shape `(languages, out)`, on the CPU in float64.

        Raises:
            FloatingPointError: If a gradient was NaN or infinite; the message names the block, weight and language.
        """
        self._check_finite()
        sums = [*self._sums.values()]
        totals = sums if self._reduce is None else self._reduce(sums)
        return {name: total.cpu().double() for name, total in zip(self._sums, totals, strict=True)}

    def _add(self, name: str, gradient: Tensor) -> None:
        flat = gradient.reshape(-1, gradient.shape[-1])
        self._sums[name][self._row] += flat.square().sum(0, dtype=self._sums[name].dtype)

    def _check_finite(self) -> None:
        found: dict[object, list[Tensor]] = {}
        for sums in self._sums.values():
            found.setdefault(sums.device, []).append(sums[self._row].isfinite().all())
        if all(torch.stack(each).all() for each in found.values()):  # one wait per GPU, and not one per weight
            return
        weight = next(w for w in self._weights if not self._sums[w.name][self._row].isfinite().all())
        raise FloatingPointError(
            f"The gradient of the loss at the outputs of {weight.name!r} (block {weight.block!r}) is NaN or infinite "
            f"in language {self._languages[self._row]!r}: run the model in a wider dtype, or give sensitivity='none'."
        )


class Output(NamedTuple):
    """What a module gives.

    Attributes:
        module: The module.
        width: How many features it gives.
        device: Where it is.
    """

    module: nn.Module
    width: int
    device: torch.device


class FactorCollector(ProductCollector):
    """Sums up `B = Σ_l w_l B^l / tr B^l` with `B^l = gᵀ g` over the tokens of language l, while it is open.

    For the outputs of a weight, the diagonal of `B` holds the sensitivities of its rows, pooled over languages.

    Args:
        outputs: Name to the output of a module.
        language_weights: As for `ProductCollector`.
        scale: By what the loss was multiplied.
        reduce: As for `RowCollector`.
    """

    def __init__(
        self,
        outputs: Mapping[str, Output],
        language_weights: Mapping[str, float],
        scale: float,
        reduce: Reduce | None = None,
    ) -> None:
        watched = [Watched(name, each.width, each.device) for name, each in outputs.items()]
        modules = {name: each.module for name, each in outputs.items()}
        watch = partial(watch_output_gradients, modules, scale=scale)
        super().__init__(watched, watch, language_weights, reduce)
