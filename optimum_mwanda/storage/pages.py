"""Memory that holds what is not needed any more, given back to the system."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_MADV_PAGEOUT = 21
_M_MMAP_THRESHOLD = -3
_LARGE = 2**22
_AS_GLIBC = 2**25
"""Bytes up to which glibc raises the threshold by itself."""


@contextmanager
def freed_at_once() -> Iterator[None]:
    """Inside the block, the memory of a large tensor goes back to the system when the tensor is freed.

    The allocator of glibc keeps pieces of up to 32 MB for later, one store for each thread. Where blocks come and go,
    these are as much as a block or two. With another C library this does nothing.
    """
    system: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(system, "mallopt") or not hasattr(system, "malloc_trim"):
        yield
        return
    system.mallopt(_M_MMAP_THRESHOLD, _LARGE)
    system.malloc_trim(0)
    try:
        yield
    finally:
        system.mallopt(_M_MMAP_THRESHOLD, _AS_GLIBC)
        system.malloc_trim(0)


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
