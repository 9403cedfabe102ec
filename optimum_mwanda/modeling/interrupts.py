"""Lets Ctrl-C, and other signals that ask a process to end, act only where they can do no harm."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_guard: "_Guard | None" = None


class _Guard:
    """Replaces the handlers in Python and keeps signals until they may act."""

    def __init__(self) -> None:
        found = {each: signal.getsignal(each) for each in _SIGNALS}
        # Those that are ignored stay ignored, and what has no handler in Python ends the process on the spot.
        self.previous = {each: handler for each, handler in found.items() if callable(handler)}
        self.pending: list[int] = []
        self.open = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.open:
            self.previous[signal.Signals(number)](number, frame)
        else:
            self.pending.append(number)

    def raise_pending(self) -> None:
        """Lets the first signal act; what comes later asks for the same."""
        if self.pending:
            number, self.pending = self.pending[0], []
            signal.raise_signal(number)


@contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Delays interrupts until the end of the block, or until `interruptible` lets them through.

    So cleanup inside the block is never interrupted, not even if somebody presses twice. Only the main thread is ever
    interrupted: in other threads, and inside another such block, this does nothing.
    """
    global _guard
    if _guard is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    guard = _Guard()
    _guard = guard
    try:
        for each in guard.previous:
            signal.signal(each, guard.handle)
        yield
    finally:
        _guard = None
        for each, handler in guard.previous.items():
            if signal.getsignal(each) == guard.handle:  # a handler may have decided what is to come after it
                signal.signal(each, handler)
        guard.raise_pending()


@contextmanager
def interruptible() -> Iterator[None]:
    """Lets interrupts through, including a delayed one; without `deferred_interrupts` it does nothing."""
    guard = _guard
    if guard is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    guard.open = True
    try:
        guard.raise_pending()
        yield
    finally:
        guard.open = False


def check_interrupts() -> None:
    """Raises a delayed interrupt."""
    with interruptible():
        pass
