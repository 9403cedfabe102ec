"""Real signals at the worst moments."""

import signal
import threading

import pytest
import torch
from torch.utils.hooks import RemovableHandle

from optimum_mwanda import MWandaConfig, MWandaPruner
from optimum_mwanda.modeling.interrupts import check_interrupts, deferred_interrupts, interruptible
from optimum_mwanda.walking.editor import WeightEditor
from tests.conftest import assert_untouched, make_model, make_rows, state_of


@pytest.fixture(autouse=True)
def default_handler():
    """A test run in the background ignores interrupts; these tests are about them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_interrupt_waits_for_the_end_of_the_block() -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupts():  # noqa: PT012
        press()
        with deferred_interrupts():
            press()
        reached.append("end")
    assert reached == ["end"]


def test_interrupt_is_let_through_where_that_is_allowed() -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupts():  # noqa: PT012
        with interruptible():
            press()
        reached.append("after")
    assert not reached
    with pytest.raises(KeyboardInterrupt), deferred_interrupts():  # noqa: PT012
        press()
        check_interrupts()
        reached.append("after")
    assert not reached


def test_ignored_interrupts_stay_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with deferred_interrupts(), interruptible():
        press()
    assert signal.signal(signal.SIGINT, signal.default_int_handler) is signal.SIG_IGN


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_other_signals_that_end_a_process_wait_too(name: str) -> None:
    number, reached = signal.Signals[name], []

    def leave(*_: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one must not disturb what follows
        raise SystemExit

    before = signal.signal(number, leave)
    try:
        with pytest.raises(SystemExit), deferred_interrupts():  # noqa: PT012
            signal.raise_signal(number)
            reached.append("end")
        assert reached == ["end"]
        signal.signal(number, leave)
        with pytest.raises(SystemExit), deferred_interrupts(), interruptible():
            signal.raise_signal(number)
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_other_threads_may_prune() -> None:
    model, errors = make_model(), []

    def work() -> None:
        try:
            pruner().prune(model, make_rows())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors


def pruner(calibration: str = "dense") -> MWandaPruner:
    config = MWandaConfig(samples_per_language=2, sequence_length=16, calibration=calibration)
    return MWandaPruner(config, progress=False)


@pytest.mark.parametrize("calibration", ["dense", "sequential"])
def test_interrupt_while_hooks_are_removed_leaves_none(calibration: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    before = state_of(model)
    remove, calls = RemovableHandle.remove, []

    def remove_and_press(handle: RemovableHandle) -> None:
        calls.append(handle)
        if len(calls) == 1:
            press()
        remove(handle)

    monkeypatch.setattr(RemovableHandle, "remove", remove_and_press)
    with pytest.raises(KeyboardInterrupt):
        pruner(calibration).prune(model, make_rows())
    assert_untouched(model, before)
    model(torch.tensor([[5, 6, 7]]))


@pytest.mark.parametrize("calibration", ["dense", "sequential"])
def test_interrupts_while_weights_are_written_and_put_back_change_nothing(
    calibration: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    before = state_of(model)
    zero, leave, calls = WeightEditor.zero, WeightEditor.__exit__, []

    def zero_and_press(self: WeightEditor, *args: object) -> None:
        zero(self, *args)  # type: ignore[arg-type]
        calls.append(args)
        if len(calls) == 3:
            press()

    def press_and_leave(self: WeightEditor, *args: object) -> None:
        press()
        leave(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(WeightEditor, "zero", zero_and_press)
    monkeypatch.setattr(WeightEditor, "__exit__", press_and_leave)
    with pytest.raises(KeyboardInterrupt):
        pruner(calibration).prune(model, make_rows())
    assert len(calls) == 3
    assert_untouched(model, before)
    assert not hasattr(model.config, "mwanda_config")
