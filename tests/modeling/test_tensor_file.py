"""Files that are written tensor by tensor are those that safetensors reads."""

import weakref
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from optimum_mwanda.modeling.tensor_file import DTYPES, write_out


def test_every_type_and_shape_is_read_again(tmp_path: Path) -> None:
    tensors = {word: (torch.arange(6).view(2, 3) % 2).to(dtype) for word, dtype in DTYPES.items()}
    tensors |= {"scalar": torch.tensor(2.5), "none": torch.zeros(0, 4), "turned": torch.arange(6.0).view(2, 3).T}
    with (tmp_path / "x.safetensors").open("wb") as file:
        write_out(dict(tensors), file.write, {"format": "pt"})
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].float(), tensor.float()), name
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_each_tensor_is_gone_when_the_next_is_written() -> None:
    tensors = {name: torch.ones(2**20 * size) for name, size in (("small", 1), ("large", 3), ("middle", 2))}
    alive = [weakref.ref(tensors[name]) for name in ("large", "middle", "small")]
    sizes = []

    def write(data: memoryview | bytes) -> None:
        if len(data) > 2**20:
            sizes.append(len(data))
            assert [tensor() is not None for tensor in alive] == [number >= len(sizes) for number in (1, 2, 3)]

    write_out(tensors, write)
    assert sizes == [12 * 2**20, 8 * 2**20, 4 * 2**20]
    assert not tensors


def test_a_failure_is_that_of_who_writes() -> None:
    def write(_: memoryview | bytes) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_out({"a": torch.ones(3)}, write)
