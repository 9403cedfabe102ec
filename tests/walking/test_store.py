"""Wherever hidden states are kept, they come back as they were."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from optimum_mwanda import MWandaConfig, MWandaPruner
from optimum_mwanda.walking.store import HiddenStates, InMemory, OnDevice, OnDisk, make_store
from tests.conftest import make_model, make_rows, state_of

STORES: dict[str, Callable[[Path], HiddenStates]] = {
    "device": lambda _: OnDevice(),
    "cpu": lambda _: InMemory(),
    "disk": OnDisk,
}


@pytest.mark.parametrize("store", STORES.values(), ids=STORES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_states_come_back_to_the_bit(store: Callable[[Path], HiddenStates], dtype: torch.dtype, tmp_path: Path) -> None:
    states = [torch.randn(2, 3 + index, 5).to(dtype) for index in range(4)]
    kept = store(tmp_path)
    for each in states:
        kept.append(each)
    kept[1] = states[1] + 1
    kept[2] = torch.ones(1, 9, 5, dtype=dtype)  # a block may give another shape
    expected = [states[0], states[1] + 1, torch.ones(1, 9, 5, dtype=dtype), states[3]]
    for batch, each in enumerate(expected):
        assert kept[batch].dtype == dtype
        assert torch.equal(kept[batch], each)


def test_a_file_that_is_left_open_has_no_name(tmp_path: Path) -> None:
    kept = OnDisk(tmp_path)
    kept.append(torch.ones(4, 4))
    assert list(tmp_path.iterdir()) == []
    assert float(kept[0].sum()) == 16


@pytest.mark.parametrize("values", [{"calibration": "sequential"}, {"refinement": "swap"}, {"reconstruction": "obs"}])
def test_the_place_of_the_hidden_states_changes_no_bit(values: dict[str, str], tmp_path: Path) -> None:
    config = MWandaConfig(sequence_length=16, batch_size=2, **values)
    found = []
    for place in ("device", "cpu", tmp_path):
        model = make_model()
        MWandaPruner(config, progress=False, activations=place).prune(model, make_rows())
        found.append(state_of(model))
    for other in found[1:]:
        assert all(torch.equal(tensor, other[name]) for name, tensor in found[0].items())


def test_places_are_named_by_what_they_are(tmp_path: Path) -> None:
    assert isinstance(make_store("device"), OnDevice)
    assert isinstance(make_store("cpu"), InMemory)
    assert isinstance(make_store(str(tmp_path)), OnDisk)


def test_a_place_that_is_none_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'.*missing' is not allowed: give 'device', 'cpu', or an existing folder"):
        MWandaPruner(activations=tmp_path / "missing")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this platform cannot reserve room")
def test_full_disk_is_an_error_and_does_not_end_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = make_store(tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        store.append(torch.zeros(2, 3))


def test_folder_that_cannot_be_written_to_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="read-only for you"):
        MWandaPruner(activations=tmp_path)
