"""Fills statistics while a model runs."""

import math
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

import torch
from torch import Tensor

from ..modeling.inputs import watch_inputs
from ..modeling.weights import PrunableWeight, check_finite
from ..utils import sum_dtype
from .reduction import Reduce
from .statistics import WeightStatistics, new_sums

_ENTRIES = 2**16  # that a thread reduces at once, so that what it makes of them stays in its own cache


class StatisticsCollector:
    """Sums up the inputs of each weight, per language, while it is open as a context manager.

    Weights that read the same tensor (query, key and value; gate and up) share its sums, so a block costs one pass
    over each of its distinct inputs, and memory for the sums of each. The sums of a weight are its own from the first
    tensor on that the others do not read.

    Args:
        weights: Weights to watch.
        languages: Languages, in the order of the rows of the sums.
        activities: Kinds of activity to count: `"positive"` or `"above_rms>THRESHOLD"`.
        reduce: Adds up the sums of all processes that share the calibration; None for a single process.
    """

    def __init__(
        self,
        weights: Sequence[PrunableWeight],
        languages: Sequence[str],
        activities: Sequence[str],
        reduce: Reduce | None = None,
    ) -> None:
        self._weights = weights
        self._languages = list(languages)
        self._activities = list(activities)
        self._reduce = reduce
        self._sums: dict[str, WeightStatistics] = {}
        made: dict[object, WeightStatistics] = {}
        for w in weights:
            # Which weights read one tensor may depend on the text, and processes must add up equally many sums.
            kind = (w.in_features, w.device) if reduce is None else w.name
            if kind not in made:
                made[kind] = new_sums(len(languages), w.in_features, activities, w.device)
            self._sums[w.name] = made[kind]
        self._sharing = Counter(map(id, self._sums.values()))
        self._watch = watch_inputs(weights, self._add)
        self._row = 0
        self._input: Tensor | None = None
        self._version: int | None = None
        self._readers: list[str] = []
        self._count = 0
        self._reduced: dict[str, Tensor] = {}

    def __enter__(self) -> "StatisticsCollector":
        self._watch.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.__exit__(kind, error, trace)
        if kind is None:
            self._settle()
        self._input = None
        self._reduced = {}

    def start(self, language: str) -> None:
        """Counts everything from here on for one language.

        Raises:
            FloatingPointError: If an activation of the previous language was NaN or infinite.
        """
        row = self._languages.index(language)
        if row != self._row:
            self._settle()
            self._check_finite()
        self._row = row

    def energies(self) -> dict[str, Tensor]:
        """Returns `Σ_t X_tj²` of the language so far, for each weight that its text has reached.

        Weights that read the same tensors have the same one; it does not change any more.
        """
        self._settle()
        reached = {name: sums for name, sums in self._sums.items() if sums.tokens[self._row]}
        copies = {id(sums): sums.square_sum[self._row].clone() for sums in reached.values()}
        return {name: copies[id(sums)] for name, sums in reached.items()}

    def lacks(self, tokens_per_expert: int) -> bool:
        """Says whether more text of the language may reach weights that it has not reached so far.

        Args:
            tokens_per_expert: Experts that have seen none of so many tokens, on average over all experts, are taken as
                those that the language does not use.

        Returns:
            Whether a weight outside the experts was not reached, or an expert was not, and experts have seen fewer
            tokens than this.
        """
        self._settle()
        inside: list[int] = []
        outside: list[int] = []
        for weight in self._weights:
            found = outside if weight.expert_name is None else inside
            found.append(int(self._sums[weight.name].tokens[self._row]))
        return not all(outside) or (not all(inside) and sum(inside) < tokens_per_expert * len(inside))

    def finish(self, languages: Sequence[str] | None = None) -> dict[str, WeightStatistics]:
        """Returns the sums of all processes, on the CPU in float64.

        Args:
            languages: Those that turned out to have text, in the order of the rows; None: all.

        Raises:
            FloatingPointError: If an activation was NaN or infinite; the message names the block, weight and language.
            ValueError: If no token of a language reached a weight outside the experts.
        """
        self._check_finite()
        if languages is not None and [*languages] != self._languages:
            self._keep(languages)
        found = [part for sums in self._sums.values() for part in (sums.tokens, sums.square_sum, *sums.active.values())]
        parts = iter(found if self._reduce is None else self._reduce(found))
        totals = {
            name: WeightStatistics(
                next(parts), next(parts).cpu().double(), {key: next(parts).cpu().double() for key in sums.active}
            )
            for name, sums in self._sums.items()
        }
        for weight in self._weights:
            tokens = totals[weight.name].tokens
            if not tokens.all() and weight.expert_name is None:
                language = self._languages[int(tokens.argmin())]
                raise ValueError(
                    f"No token of language {language!r} reaches {weight.name!r}: leave this weight out with exclude, "
                    "or calibrate on more text."
                )
        return totals

    def _keep(self, languages: Sequence[str]) -> None:
        """Forgets all other languages."""
        rows = [self._languages.index(language) for language in languages]
        readers: dict[int, list[str]] = {}
        for name, sums in self._sums.items():
            readers.setdefault(id(sums), []).append(name)
        for names in readers.values():
            self._sums.update(dict.fromkeys(names, self._sums[names[0]].of(rows)))
        self._languages = [*languages]

    def _add(self, name: str, x: Tensor) -> None:
        version = None if x.is_inference() else x._version  # counts changes in place
        if x is not self._input or version != self._version or name in self._readers:
            self._settle()
            self._input, self._version = x, version
            self._count = x.numel() // x.shape[-1]
            self._reduced = reduce_channels(x, self._activities)
        self._readers.append(name)

    def _settle(self) -> None:
        """Adds the sums of the last tensor to those of the weights that read it."""
        readers: dict[int, list[str]] = {}
        for name in self._readers:
            readers.setdefault(id(self._sums[name]), []).append(name)
        for shared, names in readers.items():
            sums = self._sums[names[0]]
            if len(names) < self._sharing[shared]:
                sums = WeightStatistics(
                    sums.tokens.clone(),
                    sums.square_sum.clone(),
                    {key: count.clone() for key, count in sums.active.items()},
                )
                self._sums.update(dict.fromkeys(names, sums))
                self._sharing[shared] -= len(names)
                self._sharing[id(sums)] = len(names)
            sums.tokens[self._row] += self._count
            sums.square_sum[self._row] += self._reduced["square_sum"]
            for key, count in sums.active.items():
                count[self._row] += self._reduced[key]
        self._readers = []
        self._input = None

    def _check_finite(self) -> None:
        distinct = {id(sums): sums.square_sum[self._row] for sums in self._sums.values()}
        found: dict[object, list[Tensor]] = {}
        for row in distinct.values():
            found.setdefault(row.device, []).append(row.isfinite().all())
        if all(torch.stack(each).all() for each in found.values()):  # one wait per GPU, and not one per weight
            return
        for position, weight in enumerate(self._weights):
            if not self._sums[weight.name].square_sum[self._row].isfinite().all():
                for earlier in self._weights[:position]:
                    check_finite(earlier)
                raise FloatingPointError(
                    f"NaN or infinite activations enter {weight.name!r} (block {weight.block!r}) in language "
                    f"{self._languages[self._row]!r}: check the weights before it, or run the model in a wider dtype."
                )


def reduce_channels(x: Tensor, activities: Sequence[str]) -> dict[str, Tensor]:
    """Sums over the tokens of one activation tensor.

    Args:
        x: `X`, shape `(..., in)`.
        activities: Kinds of activity to count.

    Returns:
        `"square_sum"` to `Σ_t X_tj²` and each activity to its count of tokens, each of shape `(in,)` and float64 if the
        device has it. Squares are float32. A CPU adds them up in float32 within a part, and parts in float64; a GPU
        reads the tensor once per sum, without a copy of it, and adds up in float32.
    """
    flat = x.detach().reshape(-1, x.shape[-1])
    if flat.device.type != "cpu":
        return reduce_in_place(flat, activities)
    total: dict[str, Tensor] = {}
    entries = _ENTRIES * torch.get_num_threads()
    for part in torch.split(flat, max(1, entries // max(1, flat.shape[1]))):
        for key, found in _reduce_part(part, activities).items():
            total[key] = total[key].add_(found) if key in total else found
    return total


def reduce_in_place(x: Tensor, activities: Sequence[str]) -> dict[str, Tensor]:
    """The same sums for a device whose memory is slow beside its arithmetic: nothing as large as `X` is float32.

    Args:
        x: `X`, shape `(tokens, in)`.
        activities: Kinds of activity to count.
    """
    dtype = sum_dtype(x.device)
    reduced = {"square_sum": _norms(x, 0).to(dtype).square()}
    for activity in activities:
        kind, _, threshold = activity.partition(">")
        active = x > 0 if kind == "positive" else x.abs() > float(threshold) * _root_mean_squares(x)
        reduced[activity] = active.sum(0).to(dtype)
    return reduced


def _root_mean_squares(x: Tensor) -> Tensor:
    return _norms(x, 1)[:, None] / math.sqrt(x.shape[1])


def _norms(x: Tensor, dim: int) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x, dim=dim, dtype=torch.promote_types(x.dtype, torch.float32))
    return norms


def _reduce_part(part: Tensor, activities: Sequence[str]) -> dict[str, Tensor]:
    x = part.float()
    squares = x.square() if "positive" in activities or x is part else x.square_()
    reduced = {"square_sum": squares.sum(0).double()}
    for activity in activities:
        kind, _, threshold = activity.partition(">")
        active = torch.empty_like(squares)  # ones and zeros as floats, which a CPU sums faster than truth values
        if kind == "positive":
            torch.gt(x, 0, out=active)
        else:  # the squares are at hand
            torch.gt(squares, squares.mean(1, keepdim=True).mul_(float(threshold) ** 2), out=active)
        reduced[activity] = active.sum(0).double()  # exact in float32 up to 2**24 tokens
    return reduced
