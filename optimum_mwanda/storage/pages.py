"""Memory that holds what was read and is not needed any more."""

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

_MADV_PAGEOUT = 21


def release_pages(folder: Path) -> None:
    """Lets the system take back the memory of mapped files, and what the allocator has kept; values stay valid.

    The pages of a file stay in memory for as long as the file is mapped, so that to read a checkpoint from end to end
    would need as much memory as to load it. Where the system does not know the calls, this does nothing.

    Args:
        folder: Where the files are.
    """
    if sys.platform != "linux":
        return
    system = ctypes.CDLL(None)
    prefix = f"{folder.resolve()}/"
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        addresses, *_, path = line.split(maxsplit=5)
        if path.startswith(prefix):
            start, end = (int(address, 16) for address in addresses.split("-"))
            system.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_PAGEOUT)
    trim()


def trim() -> None:
    """Gives back to the system what the allocator has kept of freed memory, which may be as much as a model has."""
    with suppress(AttributeError, OSError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)
