"""Running a model, or a part of it, while collectors see what enters its weights."""

from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, ExitStack, closing
from typing import Any, Protocol


class Collector(AbstractContextManager[Any], Protocol):
    """Sums up the inputs of some weights while it is open."""

    def start(self, language: str) -> None:
        """Counts everything from here on for one language."""


def run_watched(runs: Generator[Any, None, None], languages: Iterable[str], *collectors: Collector) -> None:
    """Runs one batch after the other while collectors watch.

    Args:
        runs: Runs a batch each time it is asked for another item.
        languages: Language of every batch; batches of one language come together.
        *collectors: Collectors that watch; opened here.
    """
    with ExitStack() as stack:
        stack.enter_context(closing(runs))
        for collector in collectors:
            stack.enter_context(collector)
        for language in languages:
            for collector in collectors:
                collector.start(language)
            next(runs)
        next(runs, None)  # runs what comes after the last batch
