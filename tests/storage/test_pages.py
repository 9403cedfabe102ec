"""Memory that is freed goes back to the system."""

import ctypes
import re
import sys
from pathlib import Path

import pytest
import torch

from optimum_mwanda.storage.pages import freed_at_once


def resident() -> int:
    """Bytes of this process that are in memory and not in files."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs the C library of Linux"
)
def test_what_is_freed_is_given_back_at_once() -> None:
    size = 2**24
    with freed_at_once():
        before = resident()
        # Every other one is freed: the rest keeps an allocator from giving the end of its store back.
        tensors = [torch.ones(size, dtype=torch.uint8) for _ in range(16)]
        assert resident() - before > 14 * size
        kept = tensors[::2]
        del tensors
        assert resident() - before < 10 * size
        assert len(kept) == 8
