"""Processes that `kill -9` themselves at a step of their work, which is the same step however busy the machine is.

A step is a call of a module of torch by the main thread, or a file that it opens, moves, deletes or the like in the
folder of the work. Other threads, such as one that writes to disk, are wherever they are at that moment.
"""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn


def steps_until_the_end(work: Callable[[], object], folder: Path, is_due: Callable[[], bool] = lambda: False) -> int:
    """Does some work in a process that is forked for it.

    Args:
        work: What to do.
        folder: Where it works; what happens to files elsewhere is not a step.
        is_due: Asked at every step whether the process shall be killed there.

    Returns:
        Steps of the work, or 0 if the process was killed.

    Raises:
        RuntimeError: If the work failed.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            steps = _counted(work, f"{folder}{os.sep}", is_due)
            os.write(writing, b"%d" % steps)
            code = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    with open(reading, "rb") as told:
        steps = int(told.read() or 0)
    _, status = os.waitpid(child, 0)
    if (ended := os.waitstatus_to_exitcode(status)) not in (0, -signal.SIGKILL):
        raise RuntimeError(f"The work ended with {ended}.")
    return steps


def at_step(number: int) -> Callable[[], bool]:
    """Asked at every step, says whether this is the one with a number; the first one is 0."""
    left = [number]

    def is_due() -> bool:
        left[0] -= 1
        return left[0] < 0

    return is_due


def _counted(work: Callable[[], object], folder: str, is_due: Callable[[], bool]) -> int:
    steps = asking = 0

    def step() -> None:
        nonlocal steps, asking
        if asking or threading.current_thread() is not threading.main_thread():  # what it looks at is no step
            return
        asking += 1
        steps += 1
        if is_due():
            os.kill(os.getpid(), signal.SIGKILL)
        asking -= 1

    def audit(event: str, words: tuple[Any, ...]) -> None:
        if (event == "open" or event.startswith("os.")) and words and str(words[0]).startswith(folder):
            step()

    sys.addaudithook(audit)
    nn.modules.module.register_module_forward_hook(lambda *_: step())
    work()
    return steps
