"""Where the hidden states of all batches are kept between two blocks."""

import abc
import math
import os
import tempfile
import weakref
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..modeling.host_memory import to_host

_ALIGNMENT = 64


class HiddenStates(abc.ABC):
    """Hidden states, one tensor `(batch, sequence, hidden)` per batch, read and replaced by batch number."""

    @abc.abstractmethod
    def append(self, states: Tensor) -> None:
        """Keeps the hidden states of one more batch."""

    @abc.abstractmethod
    def __getitem__(self, batch: int) -> Tensor:
        """The hidden states of a batch, on the device that they came from."""

    @abc.abstractmethod
    def __setitem__(self, batch: int, states: Tensor) -> None:
        """Replaces the hidden states of a batch."""


class OnDevice(HiddenStates):
    """Leaves hidden states on the device of the blocks."""

    def __init__(self) -> None:
        self._states: list[Tensor] = []

    def append(self, states: Tensor) -> None:
        self._states.append(states)

    def __getitem__(self, batch: int) -> Tensor:
        return self._states[batch]

    def __setitem__(self, batch: int, states: Tensor) -> None:
        self._states[batch] = states


class InMemory(HiddenStates):
    """Keeps hidden states in the machine's memory, which a model on a GPU leaves free."""

    def __init__(self) -> None:
        self._states: list[tuple[Tensor, torch.device]] = []

    def append(self, states: Tensor) -> None:
        self._states.append((to_host(states), states.device))

    def __getitem__(self, batch: int) -> Tensor:
        states, device = self._states[batch]
        return states.to(device)

    def __setitem__(self, batch: int, states: Tensor) -> None:
        kept, device = self._states[batch]
        is_a_copy = device == states.device and device.type != "cpu"
        if is_a_copy and kept.shape == states.shape and kept.dtype == states.dtype:
            kept.copy_(states)  # into memory that is there already
        else:
            self._states[batch] = (to_host(states), states.device)


class OnDisk(HiddenStates):
    """Keeps hidden states in a memory-mapped file, which the system holds in memory as far as there is room.

    The file has no name and disappears with the process, however that ends.

    Args:
        folder: Folder for the file.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._size = 0
        self._slots: list[tuple[Tensor, torch.device]] = []

    def append(self, states: Tensor) -> None:
        self._slots.append((self._slot(states), states.device))

    def __getitem__(self, batch: int) -> Tensor:
        slot, device = self._slots[batch]
        return slot.to(device)

    def __setitem__(self, batch: int, states: Tensor) -> None:
        slot, _ = self._slots[batch]
        if slot.shape == states.shape and slot.dtype == states.dtype:
            self._slots[batch] = (slot.copy_(states), states.device)
        else:
            self._slots[batch] = (self._slot(states), states.device)

    def _slot(self, states: Tensor) -> Tensor:
        """A part of the file that holds a copy."""
        start = math.ceil(self._size / _ALIGNMENT) * _ALIGNMENT
        self._size = start + states.nbytes
        if hasattr(os, "posix_fallocate") and states.nbytes:
            # On a full disk this is an error; to write into a file with holes would end the process.
            os.posix_fallocate(self._file.fileno(), start, states.nbytes)
        self._file.truncate(self._size)
        mapped = np.memmap(self._file, dtype=np.uint8, mode="r+", offset=start, shape=states.nbytes)
        return torch.from_numpy(mapped).view(states.dtype).view(states.shape).copy_(states)


def check_activations(place: str | os.PathLike[str]) -> None:
    """Checks where hidden states should be kept.

    Raises:
        ValueError: If the place is neither `"device"` nor `"cpu"` nor a folder that can be written to.
    """
    if place in ("device", "cpu"):
        return
    if not Path(place).is_dir():
        raise ValueError(
            f"activations={os.fspath(place)!r} is not allowed: give 'device', 'cpu', or an existing folder for a "
            "memory-mapped file."
        )
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"activations={os.fspath(place)!r} is a folder that is read-only for you: give another one.")


def make_store(place: str | os.PathLike[str]) -> HiddenStates:
    """Makes the store for a place: `"device"`, `"cpu"`, or a folder."""
    if place == "device":
        return OnDevice()
    return InMemory() if place == "cpu" else OnDisk(Path(place))
