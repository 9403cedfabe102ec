"""A sparse matrix as its non-zero values and their positions.

There are two codes for positions: a bitmask with one bit per weight, and, for a matrix that keeps at most N of every M
consecutive weights, the number of the choice among the `C(M, N)` possible ones, in `⌈log2 C(M, N)⌉` bits per group.
Values are compared and moved by their bits, so that negative zeros and NaN payloads survive.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..modeling.bits import INTEGERS, as_integers, marked, pack_bits, unpack_bits

RUNS = (2, 4, 8, 16)
"""The M of N:M groups; each divides `_CHUNK / 8`, so that a chunk's code ends on a byte."""

_CHUNK = 1 << 22
"""Weights coded at a time: masks and index tables for a whole matrix would need more memory than the matrix."""

_CACHED = 1 << 18
"""Weights decoded at a time, so that a CPU has in its cache where each takes its value."""

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
        return (math.comb(self.run, self.kept) - 1).bit_length()

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
    nonzeros = int(bits.count_nonzero())
    forms = [Form(shape)]
    for run in RUNS:
        if shape[-1] % run == 0 and 0 < (kept := _densest(bits, run)) < run:
            forms.append(Form(shape, kept, run))

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
        if form.run:
            mask, ranks = _complete(mask.view(-1, form.run), form.kept)
            code.append(pack_bits(_spread(ranks, form.group_bits)))
        else:
            code.append(pack_bits(mask))
        values.append(marked(part, mask.view(-1)))
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
    if form.run:
        _check_ranks(name, form, code)
    else:
        # The count of each byte value times the ones in it: this needs no unpacking of the code.
        ones = int(torch.bincount(code, minlength=256) @ _popcounts())
        if ones != len(values):
            raise damaged(name, f"its code marks {ones} values, but {len(values)} are stored")
    out = torch.empty(form.numel, dtype=INTEGERS[values.element_size()])
    bits, used = _as_bits(values), 0
    for chunk in _chunks(form.numel):
        if form.run:
            patterns = _patterns(form.kept, form.run)[0][_ranks(form, code, chunk)]
            mask = _spread(patterns, form.run).view(-1)
        else:
            mask = unpack_bits(code[chunk.start // 8 : -(-chunk.stop // 8)], torch.Size([chunk.stop - chunk.start]))
        for part, places in zip(torch.split(out[chunk], _CACHED), torch.split(mask, _CACHED), strict=True):
            used += _fill(part, places, bits[used : used + len(part)])
    return out.view(values.dtype).view(form.shape)


def _fill(out: Tensor, mask: Tensor, values: Tensor) -> int:
    """Puts the first of some values where a mask is True, and zeros elsewhere.

    Every entry takes a value, and those that are not marked are multiplied by zero: to ask each bit whether it is set,
    as `masked_scatter_` does, takes longer, because a processor cannot foresee the answers.

    Args:
        out: Integers, one-dimensional, to be filled.
        mask: Boolean, of the same shape.
        values: At least as many as are marked.

    Returns:
        How many are marked.
    """
    places = torch.from_numpy(np.cumsum(mask.numpy().view(np.uint8), dtype=np.int32))
    count = int(places[-1])
    own = torch.cat([values.new_zeros(1), values[:count]])
    torch.index_select(own, 0, places, out=out).mul_(mask)
    return count


def _as_bits(tensor: Tensor) -> Tensor:
    """The flattened tensor as integers of the same width."""
    return as_integers(tensor.contiguous().view(-1))


def _densest(bits: Tensor, run: int) -> int:
    """The most non-zeros in any group of `run` weights; stops at a full group, which usually comes early."""
    most = 0
    for chunk in (slice(0, 1 << 12), *_chunks(bits.numel())):
        most = max(most, int((bits[chunk].view(-1, run) != 0).sum(1, dtype=torch.uint8).max()))
        if most == run:
            break
    return most


def _chunks(numel: int) -> Iterator[slice]:
    return (slice(start, min(start + _CHUNK, numel)) for start in range(0, numel, _CHUNK))


@functools.lru_cache(maxsize=1)
def _popcounts() -> Tensor:
    return torch.tensor([byte.bit_count() for byte in range(256)])


@functools.lru_cache(maxsize=64)
def _patterns(kept: int, run: int) -> tuple[Tensor, Tensor]:
    """Every choice of `kept` among `run` places as a bit pattern, in ascending order, and the inverse of that list."""
    patterns = torch.tensor([number for number in range(1 << run) if number.bit_count() == kept], dtype=torch.int32)
    ranks = torch.zeros(1 << run, dtype=torch.int32)
    ranks[patterns] = torch.arange(len(patterns), dtype=torch.int32)
    return patterns, ranks


def _complete(mask: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Adds the leftmost zeros to groups with fewer than `kept` non-zeros, and numbers the choices.

    Args:
        mask: Boolean, shape `(groups, run)`, at most `kept` True per group.
        kept: Places that each group must choose.

    Returns:
        The mask with exactly `kept` True per group, and the number of each choice, int32, shape `(groups,)`.
    """
    missing = kept - mask.sum(1, keepdim=True)
    free = ~mask
    mask = mask | (free & (free.cumsum(1) <= missing))
    run = mask.shape[1]
    pattern = (mask.int() << torch.arange(run, dtype=torch.int32)).sum(1)
    return mask, _patterns(kept, run)[1][pattern]


def _spread(numbers: Tensor, width: int) -> Tensor:
    """The lowest bits of each number as booleans, shape `(numbers, width)`."""
    return ((numbers[:, None] >> torch.arange(width, dtype=torch.int32)) & 1).bool()


def _ranks(form: Form, code: Tensor, chunk: slice) -> Tensor:
    """Reads the numbers of the choices of one chunk of weights, int32."""
    first, last = (place // form.run * form.group_bits for place in (chunk.start, chunk.stop))
    bits = unpack_bits(code[first // 8 : -(-last // 8)], torch.Size([last - first])).view(-1, form.group_bits)
    return (bits.int() << torch.arange(form.group_bits, dtype=torch.int32)).sum(1, dtype=torch.int32)


def _check_ranks(name: str, form: Form, code: Tensor) -> None:
    choices = math.comb(form.run, form.kept)
    for chunk in _chunks(form.numel):
        if int(_ranks(form, code, chunk).max()) >= choices:
            raise damaged(name, f"its code holds a number above the {choices} choices of {form.kept}:{form.run}")
