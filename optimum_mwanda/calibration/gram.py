"""Sums of products of features, such as the Gram matrices of the inputs of weights, pooled over languages."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import NamedTuple, TypeAlias

import torch
from packaging.version import Version
from torch import Tensor

from ..modeling.inputs import See, watch_inputs
from ..modeling.pages import trim
from ..modeling.weights import PrunableWeight
from .reduction import Reduce

Strips: TypeAlias = list[Tensor]

_PARTS = 8
_LEAST = 128  # columns, below which products cost more time than they save
_MIXED = torch.version.cuda is not None and Version(torch.__version__) >= Version("2.8")
"""Whether GPUs multiply 16-bit matrices and add up in float32."""
_TOKENS = 2048
"""That these products sum over: they cut bits off, so that long sums become too small."""


class Watched(NamedTuple):
    """What is seen under a name.

    Attributes:
        name: The name.
        width: How many features it has.
        device: Where it is.
    """

    name: str
    width: int
    device: torch.device


class ProductCollector:
    """Sums up `Σ_l w_l P^l / tr P^l` with `P^l = Xᵀ X` over the tokens of language l, while it is open.

    Each matrix is scaled to unit trace, so a language counts by its weight, not by the length of its text or the
    scale of its activations. Languages come one after the other; at most two matrices are held for each of what is
    watched, and one more for each language of which other processes have a part: 9/16 of each, in strips that begin at
    the diagonal. The memory of a language's matrix serves the next one, because allocating it again takes half as long
    as the products of 256 tokens.

    Args:
        watched: What there is to see.
        watch: Takes what is to be called with the name and `X`, shape `(..., width)`, and calls it while it is open.
        language_weights: Language to its weight `w_l`, in the order of the text.
        reduce: Adds up the matrices of all processes that share the calibration; None for a single process.
    """

    def __init__(
        self,
        watched: Sequence[Watched],
        watch: Callable[[See], AbstractContextManager[None]],
        language_weights: Mapping[str, float],
        reduce: Reduce | None,
    ) -> None:
        self._watched = watched
        self._languages = list(language_weights)
        self._language_weights = language_weights
        self._reduce = reduce
        self._row = 0
        self._grams: dict[str, Strips] = {}
        self._done: dict[str, Strips] = {}
        self._parts: dict[str, dict[str, Strips]] = {}
        self._pooled: dict[str, Strips] = {}
        self._watch = watch(self._add)

    def __enter__(self) -> "ProductCollector":
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
        """Returns the pooled matrices, float32 of shape `(width, width)`, without what no token reached."""
        self._pool_up_to(len(self._languages))
        self._done.clear()
        trim()
        if self._reduce is not None:
            self._add_up(self._reduce)
        return {name: to_matrix(self._pooled.pop(name)) for name in [*self._pooled]}

    def _add(self, name: str, x: Tensor) -> None:
        flat = x.detach().reshape(-1, x.shape[-1])
        if not (_MIXED and flat.is_cuda and flat.dtype.itemsize == 2):
            flat = flat.float()
        is_first = name not in self._grams
        if is_first:
            done, width = self._done.pop(name, None), flat.shape[1]
            self._grams[name] = new_strips(width, flat.device) if done is None else done
        add_products(self._grams[name], flat, is_first=is_first)

    def _pool_up_to(self, row: int) -> None:
        """Pools the languages before `row`, but for those of which other processes have parts."""
        while self._row < row:
            language = self._languages[self._row]
            for name in [watched.name for watched in self._watched]:
                if (gram := self._grams.pop(name, None)) is not None:
                    if self._reduce is not None and language in self._reduce.divided:
                        self._parts.setdefault(language, {})[name] = gram
                    else:
                        self._pool(name, gram, _trace(gram), self._language_weights[language])
                        if self._pooled[name] is not gram:
                            self._done[name] = gram
            self._row += 1

    def _pool(self, name: str, gram: Strips, trace: float, language_weight: float) -> None:
        scale = language_weight / trace if trace > 0 else 0.0
        pooled = self._pooled.setdefault(name, gram)
        for strip, total in zip(gram, pooled, strict=True):
            if pooled is gram:
                strip.mul_(scale)
            else:
                total.add_(strip, alpha=scale)

    def _add_up(self, reduce: Reduce) -> None:
        """Scales the parts of the divided languages by the traces of their sums; then adds up what all have pooled."""
        divided = [language for language in self._languages if language in reduce.divided]
        traces = torch.zeros(len(self._watched), len(divided) + 1, dtype=torch.float64)  # and whether there is a token
        for row, watched in enumerate(self._watched):
            traces[row, -1] = watched.name in self._pooled
            for column, language in enumerate(divided):
                if (gram := self._parts.get(language, {}).get(watched.name)) is not None:
                    traces[row, column], traces[row, -1] = _trace(gram), 1.0
        (traces,) = reduce([traces])
        for column, language in enumerate(divided):
            grams = self._parts.pop(language, {})
            for row, watched in enumerate(self._watched):
                if watched.name in grams:
                    trace = float(traces[row, column])
                    self._pool(watched.name, grams.pop(watched.name), trace, self._language_weights[language])
        reached = [watched for watched, row in zip(self._watched, traces.tolist(), strict=True) if row[-1]]
        for name, width, device in reached:
            if name not in self._pooled:
                self._pooled[name] = [strip.zero_() for strip in new_strips(width, device)]
        totals = iter(reduce([strip for watched in reached for strip in self._pooled[watched.name]]))
        self._pooled = {name: [next(totals) for _ in self._pooled[name]] for name, _, _ in reached}


class GramCollector(ProductCollector):
    """Sums up `G = Σ_l w_l G^l / tr G^l` with `G^l = Xᵀ X` over the inputs of weights, while it is open.

    Args:
        groups: Weights to watch, in groups: either they read the same input, which is summed once, or they are the
            experts of a layer.
        language_weights: As for `ProductCollector`.
        reduce: As there.
    """

    def __init__(
        self,
        groups: Iterable[Sequence[PrunableWeight]],
        language_weights: Mapping[str, float],
        reduce: Reduce | None = None,
    ) -> None:
        self._readers: dict[str, list[str]] = {}
        seen: list[PrunableWeight] = []
        for group in groups:
            shared = [weight for weight in group if weight.expert is None]
            for weights in (shared, *([weight] for weight in group if weight.expert is not None)):
                if weights:
                    seen.append(weights[0])
                    self._readers[weights[0].name] = [weight.name for weight in weights]
        watched = [Watched(weight.name, weight.in_features, weight.device) for weight in seen]
        super().__init__(watched, partial(watch_inputs, seen), language_weights, reduce)

    def finish(self) -> dict[str, Tensor]:
        """Returns the pooled matrices, float32 of shape `(in, in)`, without weights that no token reached."""
        return {name: gram for first, gram in super().finish().items() for name in self._readers[first]}


def new_strips(width: int, device: torch.device) -> Strips:
    """A symmetric float32 matrix `(width, width)` without values: its rows, each from the diagonal or before it on.

    A strip has several rows, and begins where its first row reaches the diagonal.
    """
    return [
        torch.empty(part.stop - part.start, width - part.start, dtype=torch.float32, device=device)
        for part in _parts(width)
    ]


def add_products(gram: Strips, x: Tensor, *, is_first: bool = False) -> None:
    """Adds `Xᵀ X` on and above the diagonal: 9/16 of the work of a whole product.

    Args:
        gram: `G`, shape `(in, in)`, in strips.
        x: `X`, shape `(tokens, in)`, of the same type; or of 16 bits, on a GPU that adds up their products in the type
            of `G`.
        is_first: Whether they take the place of what is there, whatever that is.
    """
    for strip, part in zip(gram, _parts(x.shape[1]), strict=True):
        if x.dtype == strip.dtype:
            strip.addmm_(x[:, part].T, x[:, part.start :], beta=0 if is_first else 1)
        else:
            if is_first:
                strip.zero_()
            for some in torch.split(x, _TOKENS):
                strip.add_(torch.mm(some[:, part].T, some[:, part.start :], out_dtype=strip.dtype))


def to_matrix(gram: Strips) -> Tensor:
    """The whole matrix; the strips are taken out of their list, so that their memory is let go one by one."""
    whole = gram[0].new_empty(gram[0].shape[1], gram[0].shape[1])
    parts = [*_parts(len(whole))]
    for part in parts:
        whole[part, part.start :] = gram.pop(0)
    for part in parts:
        whole[part.stop :, part] = whole[part, part.stop :].T
    return whole


def _trace(gram: Strips) -> float:
    diagonal = torch.cat([strip.diagonal() for strip in gram])
    return float(diagonal.expand(len(diagonal), -1).trace())  # which adds up with more digits than a sum


def _parts(width: int) -> Iterator[slice]:
    size = max(-(-width // _PARTS), _LEAST)
    for start in range(0, width, size):
        yield slice(start, min(start + size, width))
