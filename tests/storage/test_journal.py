"""Finished parts outlive the process; damaged ones are made again, and those of another run are refused."""

import logging
from pathlib import Path

import pytest
import torch

from optimum_mwanda.storage.journal import Journal, OtherRunError

RUN = {"model": "abc", "settings": {"sparsity": 0.5, "languages": ["en", "sw"]}, "data": {"en": "1"}}


def opened(folder: Path, **changes: object) -> Journal:
    journal = Journal(folder)
    journal.open({**RUN, **changes})
    return journal


def test_parts_are_there_the_next_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "progress"
    journal = opened(folder)
    values = torch.arange(6, dtype=torch.bfloat16).view(2, 3)
    path = journal.put("pruned", "model.layers.0", {"a.weight": values.T}, {"a": 3})
    assert path == journal.find("pruned", "model.layers.0")
    assert journal.find("statistics", "model.layers.0") is None
    again = opened(folder)
    assert caplog.messages == ["Going on with an interrupted run, of which 1 parts are finished."]
    assert again.facts("pruned", "model.layers.0") == {"a": 3}
    assert torch.equal(again.tensors("pruned", "model.layers.0")["a.weight"], values.T)
    again.put("measured", "dense", {}, {"loss": 2.5})
    facts_alone = opened(folder)
    assert facts_alone.facts("measured", "dense") == {"loss": 2.5}
    assert facts_alone.tensors("measured", "dense") == {}
    again.clear()
    assert opened(folder).find("pruned", "model.layers.0") is None


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_damaged_parts_are_made_again(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = opened(tmp_path)
    journal.put("pruned", "h.0", {"w": torch.ones(100)})
    path = journal.put("pruned", "h.1", {"w": torch.ones(100)})
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes({"cut": content[:-9], "flipped": content, "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        again = opened(tmp_path)
    assert f"{path} is damaged, and is made again." in caplog.messages
    assert again.find("pruned", "h.0") is not None
    assert again.find("pruned", "h.1") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "abd"}, "model was 'abc', and is 'abd'"),
        ({"settings": {"sparsity": 0.6, "languages": ["en", "sw"]}}, "settings.sparsity was 0.5, and is 0.6"),
        ({"settings": {"sparsity": 0.5, "languages": ["en"]}}, "settings.languages was"),
        ({"data": {"en": "2", "sw": "3"}}, "data.en was '1', and is '2', data.sw was None, and is '3'"),
    ],
)
def test_another_run_is_refused_by_what_differs(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    opened(tmp_path).put("pruned", "h.0", {"w": torch.ones(3)})
    with pytest.raises(OtherRunError, match=message):
        opened(tmp_path, **changes)
    assert opened(tmp_path).find("pruned", "h.0") is not None


def test_parts_of_no_known_run_are_not_used(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="open"):
        Journal(tmp_path).put("pruned", "h.0", {"w": torch.ones(3)})
    opened(tmp_path).put("pruned", "h.0", {"w": torch.ones(3)})
    (tmp_path / "run.json").unlink()
    assert opened(tmp_path).find("pruned", "h.0") is None


def test_what_was_not_complete_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = opened(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        journal.put("pruned", "h.0", {"w": torch.ones(3)})
    monkeypatch.undo()
    assert opened(tmp_path).find("pruned", "h.0") is None
