"""Gram matrices of the inputs of weights, pooled over languages."""

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType

import torch
from torch import Tensor

from ..modeling.inputs import watch_inputs
from ..modeling.weights import PrunableWeight
from .reduction import Reduce


class GramCollector:
    """Sums up `G = Σ_l w_l G^l / tr G^l` with `G^l = Xᵀ X` over the tokens of language l, while it is open.

    Each matrix is scaled to unit trace, so a language counts by its weight, not by the length of its text or the
    scale of its activations. Languages come one after the other; at most two matrices are held per weight.

    Args:
        groups: Weights to watch, in groups: either they read the same input, which is summed once, or they are the
            experts of a layer.
        language_weights: Language to its weight `w_l`, in the order of the text.
        reduce: Adds up the matrices of all processes that share the calibration; None for a single process.
    """

    def __init__(
        self,
        groups: Iterable[Sequence[PrunableWeight]],
        language_weights: Mapping[str, float],
        reduce: Reduce | None = None,
    ) -> None:
        self._readers: dict[str, list[str]] = {}
        self._watched: list[PrunableWeight] = []
        for group in groups:
            shared = [weight for weight in group if weight.expert is None]
            for weights in (shared, *([weight] for weight in group if weight.expert is not None)):
                if weights:
                    self._watched.append(weights[0])
                    self._readers[weights[0].name] = [weight.name for weight in weights]
        self._languages = list(language_weights)
        self._language_weights = language_weights
        self._reduce = reduce
        self._row = 0
        self._grams: dict[str, Tensor] = {}
        self._pooled: dict[str, Tensor] = {}
        self._watch = watch_inputs(self._watched, self._add)

    def __enter__(self) -> "GramCollector":
        self._watch.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.__exit__(kind, error, trace)

    def start(self, language: str) -> None:
        """Counts everything from here on for one language; the languages before it are complete."""
        self._pool_up_to(self._languages.index(language))

    def finish(self) -> dict[str, Tensor]:
        """Returns the pooled matrices, float32 of shape `(in, in)`, without weights that no token reached."""
        self._pool_up_to(len(self._languages))
        return {name: gram for first, gram in self._pooled.items() for name in self._readers[first]}

    def _add(self, name: str, x: Tensor) -> None:
        flat = x.detach().reshape(-1, x.shape[-1]).float()
        gram = self._grams.get(name)
        self._grams[name] = flat.T @ flat if gram is None else gram.addmm_(flat.T, flat)

    def _pool_up_to(self, row: int) -> None:
        """Pools the languages before `row`; every process pools each one once, even without text in it."""
        while self._row < row:
            for weight in self._watched:
                self._pool(weight, self._language_weights[self._languages[self._row]])
            self._row += 1

    def _pool(self, weight: PrunableWeight, language_weight: float) -> None:
        gram = self._grams.pop(weight.name, None)
        if self._reduce is not None:
            width, device = weight.in_features, weight.matrix.device
            gram = self._reduce(torch.zeros(width, width, device=device) if gram is None else gram)
        if gram is None:
            return
        trace = float(gram.trace())
        scale = language_weight / trace if trace > 0 else 0.0
        pooled = self._pooled.get(weight.name)
        self._pooled[weight.name] = gram.mul_(scale) if pooled is None else pooled.add_(gram, alpha=scale)
