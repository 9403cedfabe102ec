"""Making what comes next in a thread, while what has come is used."""

import logging
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import closing
from queue import SimpleQueue
from threading import Event, Thread
from typing import TypeVar

from ..modeling.interrupts import interruptible

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PATIENCE = 5.0
"""Seconds in which a thread that is asked to end should do so; one that waits for a network may take longer."""


def ahead(items: Generator[T | None, None, None]) -> Generator[T, None, None]:
    """Yields what a generator yields, which goes on in a thread meanwhile, as far ahead as it gets.

    The first item is made in the caller's thread: nobody can do anything without it, and a tokenizer that is loaded for
    it may ask its user something.

    An error of the generator is raised as soon as the next item is asked for, even if others are still waiting. However
    this ends, the thread ends at the next place where the generator yields. That is waited for, but not for ever: a
    generator that waits for a network is left behind with a warning, and does not keep the process from ending.

    Args:
        items: Yields None where it can be stopped although there is no item.
    """
    found: SimpleQueue[T | None] = SimpleQueue()
    with interruptible():
        first = next((item for item in items if item is not None), None)
    if first is None:
        return
    is_over = Event()
    making: Future[None] = Future()

    def make() -> None:
        try:
            with closing(items):
                for item in items:
                    if is_over.is_set():
                        break
                    if item is not None:
                        found.put(item)
            making.set_result(None)
        except BaseException as error:
            making.set_exception(error)
        found.put(None)

    thread = Thread(target=make, name="mwanda-text", daemon=True)
    thread.start()
    try:
        item: T | None = first
        while item is not None:
            yield item
            with interruptible():
                item = found.get()
            if making.done():
                making.result()
    finally:
        is_over.set()
        thread.join(_PATIENCE)
        if thread.is_alive():
            logger.warning(
                "Calibration text is still being waited for after %g seconds: what reads it ends with its next row.",
                _PATIENCE,
            )
