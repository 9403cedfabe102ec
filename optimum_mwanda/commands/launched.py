"""Commands that several processes run together, as `torchrun` and `accelerate launch` start them.

The first process writes and speaks; the others only work. Nothing here imports torch in a process that is alone.
"""

import contextlib
import datetime
import os
import sys
from collections.abc import Iterator
from typing import Any, TypeVar

from .errors import UsageError

T = TypeVar("T")
_TIMEOUT = datetime.timedelta(hours=2)
"""How long processes wait for each other. A process that ends is noticed at once."""


class Done(BaseException):
    """This process has nothing more to do; the first one goes on alone."""


class Launch:
    """How this process takes part in a command.

    Args:
        is_shared: Whether the command can be run by several processes.
    """

    def __init__(self, is_shared: bool) -> None:
        self._is_shared = is_shared
        self._processes: Any = None

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Inside the block, the processes share the work, and only the first one can be heard.

        Raises:
            UsageError: If the command is for one process.
        """
        size = _size()
        if size == 1:
            yield
            return
        if not self._is_shared:
            raise UsageError(
                f"this command works in one process, and here are {size}: start it without torchrun or accelerate "
                "launch."
            )
        import torch
        from torch import distributed

        from ..processes.group import sharing

        if (device := own_device()) is not None:
            torch.cuda.set_device(device)
        if not distributed.is_initialized():
            distributed.init_process_group(timeout=_TIMEOUT)
        with contextlib.ExitStack() as stack:
            if not is_first():
                stack.enter_context(contextlib.redirect_stderr(stack.enter_context(open(os.devnull, "w"))))
            self._processes = stack.enter_context(sharing())
            yield

    def end(self, message: str) -> None:
        """Says why the command fails, once: in the first process, if that knows."""
        error = sys.exception()
        is_known = self._processes is not None and error is not None and self._processes.is_known(error)
        if is_first() or not is_known:
            print(message, end="", file=sys.stderr, flush=True)
        if is_known:
            self._processes.meet()  # launchers kill the others when one has ended


def leave_to_first() -> None:
    """From here on the first process works alone.

    Raises:
        Done: In the others.
    """
    if _size() == 1:
        return
    from torch import distributed

    from ..processes.group import current

    processes = current()
    if processes.size == 1:
        return
    processes.part()
    distributed.destroy_process_group()
    if not processes.is_first:
        raise Done


def from_first(value: T) -> T:
    """What the first process has, in all of them."""
    if _size() == 1:
        return value
    from ..processes.group import current

    return current().from_first(lambda: value)


def is_first() -> bool:
    """Whether this process writes files and checks where they go."""
    return _size() == 1 or os.environ.get("RANK", "0") == "0"


def own_device() -> str | None:
    """The GPU of this process, if it is one of several on GPUs."""
    import torch

    if _size() == 1 or not torch.cuda.is_available():
        return None
    return f"cuda:{int(os.environ.get('LOCAL_RANK') or 0)}"


def _size() -> int:
    return int(os.environ.get("WORLD_SIZE") or 1) if "RANK" in os.environ else 1
