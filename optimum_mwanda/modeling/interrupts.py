"""Lets Ctrl-C act only where it can do no harm."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_guard: "_Guard | None" = None


class _Guard:
    """Replaces Python's handler and keeps an interrupt until it may be raised."""

    def __init__(self) -> None:
        self.previous = signal.getsignal(signal.SIGINT)
        self.pending = False
        self.open = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.open and callable(self.previous):
            self.previous(number, frame)
        else:
            self.pending = True


@contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Delays interrupts until the end of the block, or until `interruptible` lets them through.

    So cleanup inside the block is never interrupted, not even if somebody presses twice. Only the main thread is ever
    interrupted: in other threads, and inside another such block, this does nothing.
    """
    global _guard
    ignored = signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None)
    if _guard is not None or ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    guard = _Guard()
    signal.signal(signal.SIGINT, guard.handle)
    _guard = guard
    try:
        yield
    finally:
        _guard = None
        signal.signal(signal.SIGINT, guard.previous)
        if guard.pending:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def interruptible() -> Iterator[None]:
    """Lets interrupts through, including a delayed one; without `deferred_interrupts` it does nothing."""
    guard = _guard
    if guard is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    guard.open = True
    try:
        if guard.pending:
            guard.pending = False
            signal.raise_signal(signal.SIGINT)
        yield
    finally:
        guard.open = False


def check_interrupts() -> None:
    """Raises a delayed interrupt."""
    with interruptible():
        pass
