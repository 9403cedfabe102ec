"""A sparse matrix as its non-zero values and their positions.

There are two codes for positions: a bitmask with one bit per weight, and, for a matrix that keeps at most N of every M
consecutive weights, the number of the choice among the `C(M, N)` possible ones, in `⌈log2 C(M, N)⌉` bits per group.
Values are compared and moved by their bits, so that negative zeros and NaN payloads survive.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..modeling.bits import INTEGERS, as_integers, marked, pack_bits, unpack_bits
from .patterns import RUNS, bits_of_run, mask_of_numbers, most_in_a_run, number_runs

_CHUNK = 1 << 22
"""Weights coded at a time: masks of a whole matrix would need much memory. It ends on a byte of every code."""

_CACHED = 1 << 16
"""Weights decoded at a time, so that a CPU has in its cache where values go."""

_POPCOUNTS = np.array([byte.bit_count() for byte in range(256)])
"""The ones in each byte."""

_HEADER_BYTES = 300
"""Roughly what the two extra entries of a coded tensor add to the header of a file."""


@dataclasses.dataclass(frozen=True)
class Form:
    """How one tensor is coded.

    Attributes:
        shape: Its shape.
        kept: N of an N:M code, 0 for a bitmask.
        run: M of an N:M code, 0 for a bitmask.
    """

    shape: tuple[int, ...]
    kept: int = 0
    run: int = 0

    @property
    def numel(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def group_bits(self) -> int:
        """Bits per group of an N:M code."""
        return bits_of_run(self.kept, self.run)

    @property
    def code_bits(self) -> int:
        """Bits of the code."""
        return self.numel // self.run * self.group_bits if self.run else self.numel

    @property
    def code_length(self) -> int:
        """Bytes of the code."""
        return -(-self.code_bits // 8)

    def count(self, nonzeros: int) -> int:
        """Number of values to store for a tensor with this many non-zeros; an N:M code fixes it."""
        return self.numel // self.run * self.kept if self.run else nonzeros

    def to_list(self) -> list[int]:
        """The form as it is stored: `[N, M, *shape]`."""
        return [self.kept, self.run, *self.shape]

    @classmethod
    def from_list(cls, name: str, numbers: Sequence[int]) -> "Form":
        """Reads a stored form.

        Args:
            name: Tensor that an error names.
            numbers: `[N, M, *shape]`, untrusted.

        Raises:
            ValueError: If the numbers do not describe a form.
        """
        kept, run, *shape = numbers if len(numbers) >= 2 else (0, 0)
        if not 1 <= len(shape) <= 8 or min(shape) < 1:
            raise damaged(name, f"its form {list(numbers)} does not hold a shape")
        form = cls(tuple(shape), kept, run)
        if (kept, run) != (0, 0) and not (run in RUNS and 0 < kept < run and shape[-1] % run == 0):
            raise damaged(name, f"its form {list(numbers)} is not a {kept}:{run} code for rows of {shape[-1]} weights")
        return form


def damaged(name: str, what: str) -> ValueError:
    """The error for coded tensors that do not fit together."""
    return ValueError(f"{name!r} cannot be decoded: {what}. The file is damaged: get it again from its source.")


def choose_form(tensor: Tensor) -> Form | None:
    """Finds the smallest form of a tensor.

    Args:
        tensor: Any tensor on the CPU.

    Returns:
        The form, or None if storing the plain tensor takes no more space.
    """
    if not tensor.is_floating_point() or tensor.dim() < 2 or tensor.numel() == 0:
        return None
    shape, size = tuple(tensor.shape), tensor.element_size()
    bits = _as_bits(tensor)
    nonzeros = int(np.count_nonzero(bits.numpy()))
    forms = [Form(shape)]
    densest = _densest(bits, [run for run in RUNS if shape[-1] % run == 0])
    forms += [Form(shape, kept, run) for run, kept in densest.items() if 0 < kept < run]

    def stored(form: Form) -> int:
        return form.count(nonzeros) * size + form.code_length

    best = min(forms, key=stored)
    return best if stored(best) + _HEADER_BYTES < tensor.numel() * size else None


def encode(tensor: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """Codes a tensor.

    Args:
        tensor: The tensor, on the CPU.
        form: A form that fits it, from `choose_form`.

    Returns:
        The stored values, one-dimensional and of the tensor's dtype, and the code, uint8, shape `(code_length,)`.
    """
    bits = _as_bits(tensor)
    values, code = [], []
    for chunk in _chunks(bits.numel()):
        part = bits[chunk]
        mask = part != 0
        positions = pack_bits(mask)
        if form.run:
            numbers, full = number_runs(positions.numpy(), form.kept, form.run)
            positions = torch.from_numpy(numbers[: -(-len(part) // form.run * form.group_bits // 8)])
            mask = unpack_bits(torch.from_numpy(full), mask.shape)
        code.append(positions)
        values.append(marked(part, mask))
    return torch.cat(values).view(tensor.dtype), torch.cat(code)


def check_lengths(name: str, form: Form, values: int, code: int) -> None:
    """Checks that a form and the lengths of the values and of the code agree, which needs no data.

    Args:
        name: Tensor that an error names.
        form: The form.
        values: Number of stored values.
        code: Bytes of the code.

    Raises:
        ValueError: If they do not agree.
    """
    if code != form.code_length:
        raise damaged(name, f"a tensor of shape {form.shape} needs a code of {form.code_length} bytes, not {code}")
    if form.run and values != form.count(0):
        raise damaged(name, f"{form.kept}:{form.run} of shape {form.shape} keeps {form.count(0)} values, not {values}")


def decode(name: str, form: Form, values: Tensor, code: Tensor) -> Tensor:
    """Inverse of `encode`, for untrusted data: everything is checked before the tensor is allocated.

    Args:
        name: Tensor that an error names.
        form: The form.
        values: One-dimensional, floating point, on the CPU.
        code: One-dimensional uint8, on the CPU.

    Returns:
        The tensor, of shape `form.shape` and the dtype of the values.

    Raises:
        ValueError: If form, values and code do not agree.
    """
    if values.dim() != 1 or not values.is_floating_point() or code.dim() != 1 or code.dtype != torch.uint8:
        raise damaged(name, f"it holds {values.dtype} {tuple(values.shape)} and {code.dtype} {tuple(code.shape)}")
    check_lengths(name, form, len(values), len(code))
    spare = -form.code_bits % 8
    if spare and int(code[-1]) >> (8 - spare):
        raise damaged(name, "its code has bits after its end")
    mask = code
    if form.run:
        mask = _mask_of_runs(name, form, code)
    # The count of each byte value times the ones in it: this needs no unpacking of the code.
    elif (ones := int(torch.bincount(code, minlength=256).numpy() @ _POPCOUNTS)) != len(values):
        raise damaged(name, f"its code marks {ones} values, but {len(values)} are stored")
    out = torch.zeros(form.numel, dtype=INTEGERS[values.element_size()], device="cpu")
    bits, used = _as_bits(values), 0
    for part, places in zip(torch.split(out, _CACHED), torch.split(mask, _CACHED // 8), strict=True):
        used += _fill(part, unpack_bits(places, part.shape), bits[used : used + len(part)])
    return out.view(values.dtype).view(form.shape)


def _mask_of_runs(name: str, form: Form, code: Tensor) -> Tensor:
    """The bitmask that an N:M code stands for, uint8, shape `(⌈numel / 8⌉,)`."""
    mask = torch.empty(-(-form.numel // 8), dtype=torch.uint8, device="cpu")
    for chunk in _chunks(form.numel):
        first, last = (-(-place // form.run * form.group_bits // 8) for place in (chunk.start, chunk.stop))
        found = mask_of_numbers(code[first:last].numpy(), form.kept, form.run)
        if found is None:
            choices = math.comb(form.run, form.kept)
            raise damaged(name, f"its code holds a number above the {choices} choices of {form.kept}:{form.run}")
        part = mask[chunk.start // 8 : -(-chunk.stop // 8)]
        part.copy_(torch.from_numpy(found[: len(part)]))
    return mask


def _fill(out: Tensor, mask: Tensor, values: Tensor) -> int:
    """Puts the first of some values where a mask is True.

    numpy lists the places that are marked without a branch; `masked_scatter_` asks of each bit whether it is set, and a
    processor cannot foresee the answers.

    Args:
        out: Integers, one-dimensional.
        mask: Boolean, of the same shape.
        values: At least as many as are marked.

    Returns:
        How many are marked.
    """
    places = np.flatnonzero(mask.numpy())
    out.numpy()[places] = values[: len(places)].numpy()
    return len(places)


def _as_bits(tensor: Tensor) -> Tensor:
    """The flattened tensor as integers of the same width."""
    return as_integers(tensor.contiguous().view(-1))


def _densest(bits: Tensor, runs: list[int]) -> dict[int, int]:
    """For each number of weights in a group, the most non-zeros in any; soon, as a rule, each has a full group."""
    most = dict.fromkeys(runs, 0)
    for chunk in (slice(0, 1 << 12), *_chunks(bits.numel())):
        open_runs = [run for run, found in most.items() if found < run]
        if not open_runs:
            break
        mask = pack_bits(bits[chunk] != 0).numpy()
        most |= {run: max(most[run], most_in_a_run(mask, run)) for run in open_runs}
    return most


def _chunks(numel: int) -> Iterator[slice]:
    return (slice(start, min(start + _CHUNK, numel)) for start in range(0, numel, _CHUNK))
