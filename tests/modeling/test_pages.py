"""Memory that is freed goes back to the system."""

import ctypes
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from optimum_mwanda.modeling.pages import freed_at_once, in_large_pages, read_ahead, release_files_of, release_pages_of


def resident(kind: str = "RssAnon") -> int:
    """Bytes of this process that are in memory; by default of those that are not in files."""
    found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


needs_glibc = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs the C library of Linux"
)


@needs_glibc
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


@needs_glibc
@pytest.mark.parametrize(
    ("name", "value"),
    [("MALLOC_MMAP_THRESHOLD_", "65536"), ("GLIBC_TUNABLES", "a=1:glibc.malloc.mmap_threshold=0x10000:b=2")],
)
def test_what_the_user_has_set_holds_inside_and_afterwards(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 2**20
    monkeypatch.setenv(name, value)
    with freed_at_once():
        assert _given_back(size)
    assert _given_back(size)
    monkeypatch.setenv(name, "what is not a number")
    with freed_at_once():
        assert not _given_back(size)
    assert not _given_back(size)


def _given_back(size: int) -> bool:
    """Whether what is freed of many tensors goes back to the system while those in between stay."""
    before = resident()
    tensors = [torch.ones(size, dtype=torch.uint8) for _ in range(256)]
    kept = tensors[::2]
    del tensors
    return resident() - before < 1.25 * len(kept) * size


@pytest.mark.skipif(sys.platform != "linux", reason="needs the calls of Linux")
def test_what_is_mapped_is_given_back_and_stays_valid(tmp_path: Path) -> None:
    size = 2**24
    save_file({"a": torch.ones(size), "b": torch.arange(3)}, tmp_path / "x.safetensors")
    tensors = load_file(tmp_path / "x.safetensors")
    before = resident("RssFile")
    read_ahead(tensors["a"])
    assert resident("RssFile") - before < size
    assert tensors["a"].sum() == size
    assert resident("RssFile") - before > 3 * size
    release_pages_of([*tensors.values(), torch.ones(size), torch.empty(2, device="meta")])
    assert resident("RssFile") - before < size
    assert tensors["a"].sum() == size


@pytest.mark.skipif(sys.platform != "linux", reason="needs the calls of Linux")
def test_all_of_a_file_is_given_back_for_one_of_its_tensors_and_others_are_not(tmp_path: Path) -> None:
    size = 2**24
    before = resident("RssFile")
    kept = {}
    for name in ("x", "y"):
        save_file({"a": torch.ones(size), "b": torch.arange(3)}, tmp_path / f"{name}.safetensors")
        tensors = load_file(tmp_path / f"{name}.safetensors")
        assert tensors.pop("a").sum() == size
        kept[name] = tensors
    assert resident("RssFile") - before > 7 * size
    release_files_of([kept["x"]["b"], torch.ones(2), torch.empty(2, device="meta")])
    assert 3 * size < resident("RssFile") - before < 5 * size
    assert kept["x"]["b"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("size", [0, 3, 2**23])
def test_large_pages_change_no_value(size: int) -> None:
    values = torch.randn(size)
    assert torch.equal(in_large_pages(torch.empty_like(values)).copy_(values), values)
