"""Pages of files that were read and are not needed any more."""

import ctypes
import mmap
import sys

from torch import Tensor

_MADV_PAGEOUT = 21


def page_out(tensor: Tensor) -> None:
    """Lets the system take back the memory of a tensor that is a part of a mapped file; what it holds stays valid.

    The pages of a file stay in memory for as long as the file is mapped, so that to read a checkpoint from end to end
    would need as much memory as to load it. Where the system does not know the call, this does nothing.

    Args:
        tensor: On the CPU.
    """
    if sys.platform != "linux" or tensor.device.type != "cpu":
        return
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = tensor.data_ptr() + tensor.nbytes - start
    if length >= mmap.PAGESIZE:
        length -= length % mmap.PAGESIZE
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _MADV_PAGEOUT)
