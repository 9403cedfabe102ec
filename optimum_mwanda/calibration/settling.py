"""Reading no more text of a language than it takes to rank the channels."""

from collections.abc import Generator, Iterator, Mapping

import torch
from torch import Tensor

from ..data.chunks import CalibrationChunks
from ..data.packing import Batch
from .collector import StatisticsCollector

TOKENS_PER_EXPERT = 32
"""Tokens of a language that the experts of a mixture get on average before it may end without reaching all of them."""


class SettlingText:
    """Batches of text, language by language, until the collector that sees them has seen enough.

    After 2, 4, 8, ... chunks of a language the sums over all of them are compared with those over the first half. If
    `disagreement` is below the tolerance, the rest of the language is left out. Half of a text differs from all of it
    about as much as all of it from a text without end, so this is also what more text would change. Sums that are not
    there yet cannot be compared: a language does not end before it has reached all weights, but for experts that have
    got none of so many tokens that they would have got `TOKENS_PER_EXPERT` if all were used alike.

    Args:
        chunks: The text.
        batch_size: Most chunks per batch. No batch goes beyond a place where sums are compared, so that the same text
            is read whatever the size.
        collector: Sums up what the model reads; must be open, and told of the language before the batch runs.
        tolerance: Share of channels.

    Attributes:
        read: Language to the number of chunks that were read.
    """

    def __init__(
        self, chunks: CalibrationChunks, batch_size: int, collector: StatisticsCollector, tolerance: float
    ) -> None:
        self._chunks, self._batch_size = chunks, batch_size
        self._collector, self._tolerance = collector, tolerance
        self._counts = {entry.language: entry.chunks for entry in chunks.coverage if entry.chunks}
        self.read: dict[str, int] = {}

    def __iter__(self) -> Generator[tuple[str, Batch], None, None]:
        """Yields `(language, keyword arguments of the model)`; a batch must have run before the next is asked for."""
        for language, count in self._counts.items():
            yield from ((language, batch) for batch in self._until_settled(language, count))

    @property
    def most_batches(self) -> int:
        """How many batches there are if no language settles."""
        size = self._batch_size
        return sum(-(-(stop - start) // size) for count in self._counts.values() for start, stop in _stretches(count))

    def _until_settled(self, language: str, count: int) -> Iterator[Batch]:
        half: Mapping[str, Tensor] | None = None
        for start, stop in _stretches(count):
            yield from self._chunks.part(language, start, stop, self._batch_size)
            self.read[language] = stop
            if stop == count:
                return
            so_far = self._collector.energies()
            is_settled = half is not None and disagreement(half, so_far) < self._tolerance
            if is_settled and not self._collector.lacks(TOKENS_PER_EXPERT):
                return
            half = so_far


def disagreement(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """How far two texts disagree about which channels are weak.

    Args:
        one: Name of a weight to `Σ_t X_tj²` over the first text, shape `(in,)`, for weights that the text reached.
        other: The same of the second text.

    Returns:
        Which share of the channels of a matrix is among its weaker half, those not above the median, by one text but
        not by the other; the mean over the matrices that the second text reached. A matrix that the first text did not
        reach counts as a disagreement about all its channels, and so does a text that reached none.
    """
    shares: dict[tuple[int, int], Tensor] = {}
    found = []
    for name, later in other.items():
        earlier = one.get(name)
        if earlier is None:
            found.append(torch.ones((), device=later.device))
            continue
        key = id(earlier), id(later)  # matrices that read the same have their sums in common
        if key not in shares:
            shares[key] = (_is_weak(earlier) != _is_weak(later)).float().mean()
        found.append(shares[key])
    if not found:
        return 1.0
    return float(torch.stack([share.to(found[0].device) for share in found]).mean())


def _stretches(count: int) -> Iterator[tuple[int, int]]:
    """The text between two comparisons, in chunks: 0 to 1, 1 to 2, 2 to 4, 4 to 8, ... up to all of it."""
    start, stop = 0, 1
    while start < count:
        yield start, min(stop, count)
        start, stop = stop, 2 * stop


def _is_weak(energies: Tensor) -> Tensor:
    return energies <= energies.median()
