"""Making what comes next in a thread, while what has come is used."""

from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from queue import SimpleQueue
from threading import Event
from typing import TypeVar

from ..modeling.interrupts import interruptible

T = TypeVar("T")


def ahead(items: Generator[T | None, None, None]) -> Generator[T, None, None]:
    """Yields what a generator yields, which goes on in a thread meanwhile, as far ahead as it gets.

    The first item is made in the caller's thread: nobody can do anything without it, and a tokenizer that is loaded for
    it may ask its user something.

    An error of the generator is raised as soon as the next item is asked for, even if others are still waiting. However
    this ends, the thread ends first: at the next place where the generator yields.

    Args:
        items: Yields None where it can be stopped although there is no item.
    """
    found: SimpleQueue[T | None] = SimpleQueue()
    with interruptible():
        first = next((item for item in items if item is not None), None)
    if first is None:
        return
    found.put(first)
    is_over = Event()

    def make() -> None:
        with closing(items):
            for item in items:
                if is_over.is_set():
                    return
                if item is not None:
                    found.put(item)

    def end(_: Future[None]) -> None:
        found.put(None)

    with ThreadPoolExecutor(1, thread_name_prefix="mwanda-text") as thread:
        making = thread.submit(make)
        making.add_done_callback(end)
        try:
            while True:
                with interruptible():
                    item = found.get()
                if making.done():
                    making.result()
                if item is None:
                    return
                yield item
        finally:
            is_over.set()
