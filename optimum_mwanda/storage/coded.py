"""The layout of coded tensors in a safetensors file, and a view of such a file as if it were dense.

A tensor `x` that becomes smaller is stored as its values, one-dimensional and under its own name, next to
`x.mwanda_code` and `x.mwanda_form`. A reader that does not know codes finds a wrong shape and fails, instead of
silently leaving `x` out.
"""

import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..modeling.tensor_file import DTYPES
from ..utils import abridged
from .bitmask import Form, check_lengths, choose_form, damaged, decode, encode
from .files import opened

COMPRESSED = "mwanda-compressed"
"""`quant_method` of a compressed checkpoint."""
FORMAT = 2
"""Version of the layout."""
CODE = ".mwanda_code"
FORM = ".mwanda_form"

_MAX_DIMENSIONS = 8
_CHECKSUM_BYTES = 4


def decoded_names(names: Iterable[str]) -> set[str]:
    """Names of the tensors whose parts have these names."""
    return {name.removesuffix(CODE).removesuffix(FORM) for name in names}


def names_in(paths: Iterable[Path]) -> set[str]:
    """Names of the tensors in the files of one checkpoint, from their headers; a coded one counts once.

    Raises:
        ValueError: If a file cannot be read, or a tensor is in two of them.
    """
    found: dict[str, Path] = {}
    for path in paths:
        with opened(path) as file:
            for name in decoded_names(file.keys()):
                if (first := found.setdefault(name, path)) != path:
                    raise ValueError(
                        f"{name!r} is both in {first} and in {path}: delete the file that does not belong to the "
                        "checkpoint, or get the checkpoint again from its source."
                    )
    return set(found)


def check_format(format: Any) -> None:
    """Checks the version of the layout.

    Raises:
        ValueError: If it is another version.
    """
    if format == FORMAT:
        return
    is_newer = isinstance(format, int) and format > FORMAT
    raise ValueError(
        f"The checkpoint is compressed with layout {format!r}, but this optimum-mwanda reads layout {FORMAT}: "
        + ("install a newer optimum-mwanda." if is_newer else "compress the dense checkpoint again.")
    )


def check_count(expected: Any, stored: Collection[str], missing: Callable[[], Iterable[str]] = tuple) -> None:
    """Checks that a checkpoint holds as many tensors as its config says.

    Args:
        expected: The number in the config, untrusted; None if the config does not say.
        stored: Names of the stored tensors; a coded one counts once.
        missing: Guesses which ones are missing; called only if the numbers differ.

    Raises:
        ValueError: If the numbers differ.
    """
    if expected is None or expected == len(stored):
        return
    names = list(missing())
    hint = f" Nothing is stored for {abridged(map(repr, names))}." if names else ""
    raise ValueError(
        f"The compressed checkpoint holds {len(stored)} tensors, but its config.json says {expected!r}: download or "
        f"compress it again.{hint}"
    )


def stored_parts(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """What to store for a tensor: the tensor itself, or values, code and form if these take less space.

    Args:
        name: Its name.
        tensor: The tensor, on the CPU.
    """
    form = choose_form(tensor)
    if form is None:
        return {name: tensor}
    values, code = encode(tensor, form)
    code = torch.cat([code, _checksum(form, values, code)])
    return {name: values, name + CODE: code, name + FORM: torch.tensor(form.to_list())}


def _checksum(form: Form, values: Tensor, code: Tensor) -> Tensor:
    """CRC-32 of form, values and code, little-endian, uint8, shape `(4,)`: most damage to an N:M code is legal too."""
    found = 0
    for part in (torch.tensor(form.to_list()), values, code):
        if part.numel():
            found = zlib.crc32(part.contiguous().view(-1).view(torch.uint8).numpy().data, found)
    return torch.tensor(list(found.to_bytes(_CHECKSUM_BYTES, "little")), dtype=torch.uint8)


class CodedTensor:
    """A coded tensor that is decoded when it is read, with the interface of a slice of an open safetensors file.

    Args:
        name: Its name.
        tensors: Name to tensor, or to slice of an open safetensors file; untrusted.
        max_numel: Most weights that it may have; None for no limit besides its code.

    Raises:
        ValueError: If the types and shapes of values, code and form do not agree, or the tensor is too large.
    """

    def __init__(self, name: str, tensors: Mapping[str, Any], max_numel: int | None = None) -> None:
        for part in (name, name + CODE, name + FORM):
            if part not in tensors:
                raise damaged(name, f"{part!r} is missing")
        self._name, self._values, self._code = name, tensors[name], tensors[name + CODE]
        dtype, shape = _header(tensors[name + FORM])
        if dtype != torch.int64 or len(shape) != 1 or shape[0] > 2 + _MAX_DIMENSIONS:
            raise damaged(name, f"its form is {dtype} of shape {shape}")
        self.form = Form.from_list(name, tensors[name + FORM][...].tolist())
        self._dtype, values = _header(self._values)
        code_dtype, code = _header(self._code)
        if len(values) != 1 or not self._dtype.is_floating_point or len(code) != 1 or code_dtype != torch.uint8:
            raise damaged(name, f"it holds {self._dtype} of shape {values} and {code_dtype} of shape {code}")
        check_lengths(name, self.form, values[0], code[0] - _CHECKSUM_BYTES)
        if max_numel is not None and self.form.numel > max_numel:
            raise damaged(name, f"it has shape {self.form.shape}, but the model has room for {max_numel} weights")

    def get_shape(self) -> list[int]:
        """Shape of the decoded tensor."""
        return list(self.form.shape)

    def get_dtype(self) -> str:
        """Data type, as safetensors names it."""
        return next(word for word, dtype in DTYPES.items() if dtype == self._dtype)

    def __getitem__(self, index: Any) -> Tensor:
        """Decodes the whole tensor and indexes it.

        Raises:
            ValueError: If the code disagrees with form, values or checksum.
        """
        values, stored = self._values[...].cpu(), self._code[...].cpu()
        code, checksum = stored[:-_CHECKSUM_BYTES], stored[-_CHECKSUM_BYTES:]
        tensor = decode(self._name, self.form, values, code)
        if not torch.equal(_checksum(self.form, values, code), checksum):
            raise damaged(self._name, "its checksum is another")
        return tensor[index]


def _header(tensor: Any) -> tuple[torch.dtype, tuple[int, ...]]:
    """Type and shape of a tensor or slice, without reading its data; types that cannot be coded count as bool."""
    if torch.is_tensor(tensor):
        return tensor.dtype, tuple(tensor.shape)
    return DTYPES.get(tensor.get_dtype(), torch.bool), tuple(tensor.get_shape())


def decoded_view(
    tensors: Mapping[str, Any], max_numel: Callable[[str], int | None] = lambda name: None
) -> dict[str, Any]:
    """Shows coded tensors under their ordinary names, each decoded when it is read; the others are passed on.

    Args:
        tensors: Name to tensor, or to slice of an open safetensors file.
        max_numel: Gives the most weights that a tensor may have; None for no limit besides its code.

    Returns:
        The same mapping without codes and forms. Only forms have been read.

    Raises:
        ValueError: If the parts of a tensor do not agree, or it is too large.
    """
    coded = {name.removesuffix(end) for name in tensors for end in (CODE, FORM) if name.endswith(end)}
    view = {name: tensor for name, tensor in tensors.items() if not name.endswith((CODE, FORM))}
    return view | {name: CodedTensor(name, tensors, max_numel(name)) for name in sorted(coded)}
