"""Memory in the eyes of the system: what is given back, what is fetched before it is needed."""

import ctypes
import mmap
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

_MADV_WILLNEED, _MADV_HUGEPAGE, _MADV_PAGEOUT = 3, 14, 21
_M_MMAP_THRESHOLD = -3
_LARGE = 2**22
_AS_GLIBC = 2**25
"""Bytes up to which glibc raises the threshold by itself, and above which `mallopt` refuses it."""
_PIECE = 2**17
"""Bytes that every system reads ahead when it is asked to; of more than that, some read the beginning alone."""


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
    outside = _threshold()
    system.mallopt(_M_MMAP_THRESHOLD, min(_LARGE, outside))
    system.malloc_trim(0)
    try:
        yield
    finally:
        system.mallopt(_M_MMAP_THRESHOLD, outside)
        system.malloc_trim(0)


def _threshold() -> int:
    """Bytes from which on glibc gives memory back when it is freed: what its user has set, or what it comes to."""
    tunable = re.search(r"glibc\.malloc\.mmap_threshold=(\w+)", os.environ.get("GLIBC_TUNABLES", ""))
    try:
        return min(int(tunable[1] if tunable else os.environ["MALLOC_MMAP_THRESHOLD_"], 0), _AS_GLIBC)
    except (KeyError, ValueError):
        return _AS_GLIBC


def release_pages(folder: Path) -> None:
    """Lets the system take back the memory of mapped files, and what the allocator has kept; values stay valid.

    The pages of a file stay in memory for as long as the file is mapped, so that to read a checkpoint from end to end
    would need as much memory as to load it. Where the system does not know the calls, this does nothing.

    Args:
        folder: Where the files are.
    """
    if sys.platform != "linux":
        return
    prefix = f"{folder.resolve()}/"
    for start, end, path in _mapped():
        if path.startswith(prefix):
            _advise(start, end, _MADV_PAGEOUT)
    trim()


def release_pages_of(tensors: Iterable[Tensor]) -> None:
    """Lets the system take back the memory of those tensors that are in mapped files; values stay valid.

    Args:
        tensors: Tensors on any device.
    """
    if sys.platform != "linux":
        return
    files = [(start, end) for start, end, path in _mapped() if path.startswith("/")]
    for tensor in tensors:
        if tensor.device.type == "cpu" and any(start <= tensor.data_ptr() < end for start, end in files):
            _advise(*_whole_pages(tensor), _MADV_PAGEOUT)


def release_files_of(tensors: Iterable[Tensor]) -> None:
    """Lets the system take back the memory of those mapped files in which some tensors are; values stay valid.

    Args:
        tensors: Tensors on any device.
    """
    if sys.platform != "linux":
        return
    places = [tensor.data_ptr() for tensor in tensors if tensor.device.type == "cpu"]
    files = [(start, end, path) for start, end, path in _mapped() if path.startswith("/")]
    named = {path for start, end, path in files if any(start <= place < end for place in places)}
    for start, end, path in files:
        if path in named:
            _advise(start, end, _MADV_PAGEOUT)


def read_ahead(tensor: Tensor) -> None:
    """Asks the system to read a tensor of a mapped file from disk, into memory that it can take back at any time."""
    if sys.platform != "linux":
        return
    start, end = _whole_pages(tensor)
    for position in range(start, end, _PIECE):
        _advise(position, min(position + _PIECE, end), _MADV_WILLNEED)


def in_large_pages(tensor: Tensor) -> Tensor:
    """Has a new tensor come into memory in pages of 2 MB where the system has these, which takes half as long."""
    if sys.platform == "linux" and tensor.nbytes >= _LARGE:
        _advise(*_whole_pages(tensor), _MADV_HUGEPAGE)
    return tensor


def _mapped() -> Iterator[tuple[int, int, str]]:
    """First and last address of what is mapped into this process, and the path if it is a file."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        addresses, *_, path = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in addresses.split("-"))
        yield start, end, path


def _whole_pages(tensor: Tensor) -> tuple[int, int]:
    """Addresses between which all pages belong to a tensor that is contiguous and on the CPU."""
    size = mmap.PAGESIZE
    return -(-tensor.data_ptr() // size) * size, (tensor.data_ptr() + tensor.nbytes) // size * size


def _advise(start: int, end: int, advice: int) -> None:
    """Tells the system something about memory; it may not know what is meant."""
    if end > start:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice)


def trim() -> None:
    """Gives back to the system what the allocator has kept of freed memory, which may be as much as a model has."""
    with suppress(AttributeError, OSError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)
