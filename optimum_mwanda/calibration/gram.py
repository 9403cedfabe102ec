"""Gram matrices of what enters the weights, languages pooled."""

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType

from torch import Tensor

from ..modeling.inputs import watch_inputs
from ..modeling.weights import PrunableWeight


class GramCollector:
    """Sums up `G = Σ_l w_l G^l / tr G^l` with `G^l = X^lᵀ X^l` over the tokens of language l, while open.

    Scaled to unit trace, a language counts by its weight, whatever the length of its text and the scale of its
    activations. Languages come one after the other; no more than two matrices are held per weight.

    Args:
        groups: Weights to watch, in groups that read the same input, which is summed once, or the experts of a layer.
        languages: Language to its weight `w_l`.
    """

    def __init__(self, groups: Iterable[Sequence[PrunableWeight]], languages: Mapping[str, float]) -> None:
        self._readers: dict[str, list[str]] = {}
        watched = []
        for group in groups:
            shared = [weight for weight in group if weight.expert is None]
            for weights in (shared, *([weight] for weight in group if weight.expert is not None)):
                if weights:
                    watched.append(weights[0])
                    self._readers[weights[0].name] = [weight.name for weight in weights]
        self._shares = languages
        self._language: str | None = None
        self._grams: dict[str, Tensor] = {}
        self._pooled: dict[str, Tensor] = {}
        self._watch = watch_inputs(watched, self._add)

    def __enter__(self) -> "GramCollector":
        self._watch.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.__exit__(kind, error, trace)

    def start(self, language: str) -> None:
        """Counts what follows for one language."""
        if language != self._language:
            self._pool()
        self._language = language

    def finish(self) -> dict[str, Tensor]:
        """Returns the pooled matrices, float32 of shape `(in, in)`; weights that no token reached have none."""
        self._pool()
        return {name: gram for first, gram in self._pooled.items() for name in self._readers[first]}

    def _add(self, name: str, x: Tensor) -> None:
        flat = x.detach().reshape(-1, x.shape[-1]).float()
        gram = self._grams.get(name)
        self._grams[name] = flat.T @ flat if gram is None else gram.addmm_(flat.T, flat)

    def _pool(self) -> None:
        for name, gram in self._grams.items():
            trace = float(gram.trace())
            share = self._shares[self._language] / trace if trace > 0 else 0.0  # type: ignore[index]
            pooled = self._pooled.get(name)
            self._pooled[name] = gram.mul_(share) if pooled is None else pooled.add_(gram, alpha=share)
        self._grams = {}
