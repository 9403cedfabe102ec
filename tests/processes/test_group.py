"""A process that is alone, whether it knows of others or not."""

import logging

import pytest
import torch

from optimum_mwanda import MWandaConfig, MWandaPruner
from optimum_mwanda.processes import group
from optimum_mwanda.processes.group import Processes, current, sharing, work_alone

from ..conftest import make_model, make_rows


def test_alone_everything_is_ones_own() -> None:
    processes = Processes()
    tensors = [torch.ones(2), torch.zeros(3)]
    assert all(total is tensor for total, tensor in zip(processes.add_up(tensors), tensors, strict=True))
    assert processes.from_first(lambda: 7) == 7
    assert processes.is_first
    processes.check()
    processes.check_alike({"anything": 1}, "")


def test_small_tensors_of_a_kind_travel_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "_BUCKET", 20)
    tensors = [torch.zeros(2), torch.zeros(3), torch.zeros(1), torch.zeros(9), torch.zeros(1), torch.zeros(1).long()]
    assert group._buckets(tensors) == [[0, 1], [2], [3], [4], [5]]
    assert group._buckets([torch.zeros(0), torch.zeros(0)]) == [[0, 1]]


def test_errors_pass_through_and_blocks_do_not_nest() -> None:
    @sharing()
    def fail() -> None:
        with sharing() as inner:
            assert inner is current()
            raise ValueError("as it was")

    with pytest.raises(ValueError, match="as it was") as caught:
        fail()
    assert not hasattr(caught.value, "__notes__")


def test_a_block_inside_another_one_is_a_part_of_it() -> None:
    outer = Processes(0, 2)
    token = group._current.set(outer)
    try:
        with sharing() as inner:
            assert inner is outer
        assert current() is outer  # and nobody was told that it has ended
    finally:
        group._current.reset(token)


def test_a_process_of_several_without_a_group_is_warned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    pruner = MWandaPruner(MWandaConfig(sequence_length=24, samples_per_language=2), progress=False)
    with caplog.at_level(logging.WARNING), work_alone():
        pruner.prune(make_model(), make_rows())
    assert not caplog.messages
    with caplog.at_level(logging.WARNING):
        pruner.prune(make_model(), make_rows())
    (message,) = caplog.messages
    assert "one of 2 processes, but each of them does all of the work" in message


def test_errors_that_cannot_be_sent_are_described() -> None:
    class Local(Exception):
        pass

    assert str(group._portable(Local("here only"))) == "Local: here only"
    assert type(group._portable(FloatingPointError("NaN"))) is FloatingPointError
    assert "interrupted" in str(group._portable(KeyboardInterrupt()))
