"""The text of later languages is read while the model runs that of earlier ones, and nobody sees a difference."""

import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel

from optimum_mwanda import CalibrationStatistics, MWandaConfig, MWandaPruner
from optimum_mwanda.data import ahead as ahead_module
from optimum_mwanda.data import chunks as chunks_module
from optimum_mwanda.data.chunks import CalibrationText, build_chunks
from optimum_mwanda.modeling.blocks import inference_mode
from optimum_mwanda.pruning.checks import open_model
from optimum_mwanda.walking import calibrating
from optimum_mwanda.walking.calibrating import calibrate
from tests.conftest import assert_untouched, make_model, make_rows, state_of
from tests.families.matrix import FAMILIES

Row = dict[str, Any]
LENGTH = 8
MANY = 10**6


def config_of(**settings: Any) -> MWandaConfig:
    return MWandaConfig(**{"sequence_length": LENGTH, "samples_per_language": 3, "batch_size": 2, **settings})


def by_language(languages: str = "en fr sw", **options: Any) -> dict[str, Sequence[Row]]:
    rows = make_rows(languages, **{"length": LENGTH, **options})
    return {language: [row for row in rows if row["language"] == language] for language in languages.split()}


def streams(rows: Sequence[Row]) -> dict[str, IterableDataset]:
    languages = dict.fromkeys(row["language"] for row in rows)
    return {
        language: Dataset.from_list([row for row in rows if row["language"] == language]).to_iterable_dataset()
        for language in languages
    }


class Rows(list[Row]):
    """Rows that can be looked up; tells when that happens."""

    def __init__(self, rows: Sequence[Row], look: Callable[[], None], count: int | None = None) -> None:
        self.read = 0
        self._rows, self._look, self._count = rows, look, count or len(rows)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        self._look()
        self.read += 1
        return self._rows[index % len(self._rows)]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Is set when the first batch runs."""
    event, run = threading.Event(), calibrating.run_blocks
    monkeypatch.setattr(calibrating, "run_blocks", lambda *args: event.set() or run(*args))
    return event


def wait_for(event: threading.Event) -> None:
    if not event.wait(60):
        raise TimeoutError


def assert_no_thread_reads() -> None:
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("mwanda-text")] == []


@pytest.fixture(autouse=True)
def _no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(calibrating, "input_device", lambda _: torch.device("cuda"))
    yield
    assert_no_thread_reads()


def read_first(model: PreTrainedModel, dataset: Any, config: MWandaConfig) -> CalibrationStatistics:
    """The statistics if all is read before the model runs."""
    weights, source = open_model(model, config)
    activities = [config.activity] if config.activity else []
    chunks = build_chunks(dataset, config, model)
    with inference_mode(model):
        return calibrate(model, weights, chunks, config, source, activities).statistics


def assert_equal(one: CalibrationStatistics, other: CalibrationStatistics) -> None:
    for field in fields(CalibrationStatistics):
        if field.name != "weights":
            assert getattr(one, field.name) == getattr(other, field.name)
    assert [*one.weights] == [*other.weights]
    for name, entry in one.weights.items():
        found = other.weights[name]
        assert torch.equal(entry.tokens, found.tokens)
        assert torch.equal(entry.square_sum, found.square_sum)
        assert entry.active.keys() == found.active.keys()
        assert all(torch.equal(entry.active[key], found.active[key]) for key in entry.active)


@pytest.mark.parametrize("prunes", [False, True])
def test_first_language_runs_before_the_last_is_read(prunes: bool, ran: threading.Event) -> None:
    plain = by_language()
    dataset = {**plain, "sw": Rows(plain["sw"], lambda: wait_for(ran))}
    model, config = make_model(), config_of()
    pruner = MWandaPruner(config, progress=False)
    if prunes:
        pruner.prune(model, dataset)
        expected = MWandaPruner(config, progress=False).prune(make_model(), plain)
        assert all(torch.equal(value, expected.state_dict()[name]) for name, value in state_of(model).items())
    else:
        assert_equal(pruner.calibrate(model, dataset), read_first(make_model(), plain, config))
    assert dataset["sw"].read == 3
    assert pruner.coverage == build_chunks(plain, config, model).coverage


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "t5"])
@pytest.mark.parametrize("container", [list, Dataset.from_list, streams], ids=["list", "table", "dict of streams"])
def test_statistics_are_those_of_text_that_was_read_first(family: str, container: Any) -> None:
    rows = make_rows("de en fr sw", rows=5, length=LENGTH)
    rows += [{"language": "bn", "input_ids": [5] * (LENGTH - 1)}, {"language": "zu", "input_ids": []}]
    if family == "t5":
        rows = [{**row, "labels": row["input_ids"][::-1]} for row in rows if row["language"] != "bn"]
    dataset, make = container(rows), FAMILIES[family].make
    variants: list[dict[str, Any]] = [{}, {"languages": ["sw", "de", "en"]}]
    variants += [{"activation": "positive", "samples_per_language": 4}, {"reservoir": 4, "seed": 1}]
    for settings in variants:
        config = config_of(**settings)
        found = MWandaPruner(config, progress=False).calibrate(make(), dataset)
        assert_equal(found, read_first(make(), dataset, config))
        assert [entry.language for entry in found.left_out] == (
            [] if "languages" in settings else ["zu"] if family == "t5" else ["bn", "zu"]
        )


@pytest.mark.parametrize("reservoir", [None, 3])
def test_a_stream_is_read_while_the_languages_before_it_run(reservoir: int | None, ran: threading.Event) -> None:
    plain, threads = by_language(), []

    def rows() -> Iterator[Row]:
        wait_for(ran)
        for row in plain["sw"]:
            threads.append(threading.current_thread())
            yield row

    config = config_of(reservoir=reservoir)
    dataset = {**streams([*plain["en"], *plain["fr"]]), "sw": IterableDataset.from_generator(rows)}
    found = MWandaPruner(config, progress=False).calibrate(make_model(), dataset)
    assert_equal(found, read_first(make_model(), streams([row for part in plain.values() for row in part]), config))
    assert len({*threads}) == 1
    assert threading.current_thread() not in threads


def test_a_stream_that_does_not_answer_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, plain, waits, answers = make_model(), by_language(), threading.Event(), threading.Event()
    before, threads = state_of(model), []

    def rows() -> Iterator[Row]:
        threads.append(threading.current_thread())
        waits.set()
        wait_for(answers)
        yield from plain["sw"] * MANY

    def interrupted(*_: Any) -> None:
        wait_for(waits)
        raise KeyboardInterrupt

    monkeypatch.setattr(ahead_module, "_PATIENCE", 0.1)
    monkeypatch.setattr(calibrating, "run_blocks", interrupted)
    config = config_of(samples_per_language={"sw": MANY})
    with pytest.raises(KeyboardInterrupt):
        MWandaPruner(config, progress=False).calibrate(
            model, {**streams(plain["en"]), "sw": IterableDataset.from_generator(rows)}
        )
    assert "Calibration text is still being waited for after 0.1 seconds" in caplog.text
    assert_untouched(model, before)
    assert threads[0].daemon  # so that it does not keep the process from ending
    answers.set()
    threads[0].join(60)
    assert not threads[0].is_alive()


def test_matrices_share_their_sums_although_a_language_is_left_out() -> None:
    found = MWandaPruner(config_of(), progress=False).calibrate(
        make_model(), {**by_language(), "zu": [{"input_ids": [5]}]}
    )
    assert found.languages == ("en", "fr", "sw")
    assert len({entry.square_sum.data_ptr() for entry in found.weights.values()}) == 12


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        ({"input_ids": [999] * LENGTH}, {}),
        ({"input_ids": [5, 6]}, {"languages": ["en", "fr", "sw"]}),
        ({"input_ids": [5] * LENGTH, "position_ids": [0] * LENGTH}, {}),
        ({"input_ids": [0.5] * LENGTH}, {}),
        ({"text": "no tokenizer"}, {}),
    ],
    ids=["vocabulary", "short", "positions", "type", "tokenizer"],
)
@pytest.mark.parametrize("prunes", [False, True])
def test_an_error_in_a_later_language_is_the_same_and_leaves_the_model_untouched(
    row: Row, settings: dict[str, Any], prunes: bool, ran: threading.Event
) -> None:
    model, config, plain = make_model(), config_of(**settings), by_language()
    before = state_of(model)
    with pytest.raises((TypeError, ValueError)) as expected:
        build_chunks({**plain, "sw": [row]}, config, model)
    pruner = MWandaPruner(config, progress=False)
    dataset = {**plain, "sw": Rows([row], lambda: wait_for(ran))}
    with pytest.raises(type(expected.value)) as raised:
        (pruner.prune if prunes else pruner.calibrate)(model, dataset)
    assert_no_thread_reads()  # although the error holds all that there was when it was raised
    assert str(raised.value) == str(expected.value)
    assert ran.is_set()
    assert_untouched(model, before)
    assert_equal(pruner.calibrate(model, plain), read_first(model, plain, config))


@pytest.mark.parametrize("progress", [False, True])
@pytest.mark.parametrize("kind", ["error", "interrupt"])
def test_an_end_in_a_forward_pass_ends_reading(kind: str, progress: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, began, run = make_model(), threading.Event(), calibrating.run_blocks
    before = state_of(model)

    def end(*args: Any) -> None:
        wait_for(began)
        if kind == "error":
            raise RuntimeError("out of memory")
        signal.raise_signal(signal.SIGINT)
        run(*args)

    monkeypatch.setattr(calibrating, "run_blocks", end)
    plain = by_language()
    endless = Rows(plain["sw"], began.set, MANY)
    config = config_of(samples_per_language={"sw": MANY})
    with pytest.raises(RuntimeError if kind == "error" else KeyboardInterrupt) as raised:
        MWandaPruner(config, progress=progress).calibrate(model, {**plain, "sw": endless})
    assert_no_thread_reads()
    assert raised.value.__traceback__ is not None  # holds all that there was when it was raised
    assert 0 < endless.read < MANY
    assert_untouched(model, before)


def test_an_interrupt_while_the_model_waits_for_text_ends_reading(ran: threading.Event) -> None:
    model, main = make_model(), threading.main_thread().ident
    before = state_of(model)

    def interrupt() -> None:
        if endless.read == 3:
            signal.pthread_kill(main, signal.SIGINT)

    endless = Rows(by_language()["en"], interrupt, MANY)
    config = config_of(samples_per_language={"en": MANY})
    with pytest.raises(KeyboardInterrupt) as raised:
        MWandaPruner(config, progress=False).calibrate(model, {"en": endless})
    assert_no_thread_reads()
    assert raised.value.__traceback__ is not None
    assert endless.read == 3  # nothing else waits for the first language, so that it ends at once
    assert not ran.is_set()
    assert_untouched(model, before)


@pytest.mark.parametrize(
    ("settings", "make", "device"),
    [
        ({}, list, "cpu"),
        ({"calibration_tolerance": 0.5}, list, "cuda"),
        ({"language_weights": "minimax"}, list, "cuda"),
        ({}, lambda rows: Dataset.from_list(rows).to_iterable_dataset(), "cuda"),
    ],
    ids=["on the processor", "settling", "weights", "stream"],
)
def test_what_needs_all_text_and_what_runs_on_the_processor_reads_it_first(
    settings: dict[str, Any], make: Callable[[list[Row]], Any], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        pytest.fail("a thread reads")

    monkeypatch.setattr(calibrating, "input_device", lambda _: torch.device(device))
    monkeypatch.setattr(chunks_module, "ahead", never)
    MWandaPruner(config_of(**settings), progress=False).prune(make_model(), make(make_rows("en fr", length=LENGTH)))


class Elsewhere(Sequence[Row]):
    """Rows that can only be read where they were made, as those of a database."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows, self._thread = rows, threading.current_thread()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        assert threading.current_thread() is self._thread
        return self._rows[index]


def test_rows_of_unknown_types_are_read_by_the_thread_that_has_them(ran: threading.Event) -> None:
    plain = by_language()
    found = MWandaPruner(config_of(), progress=False).calibrate(
        make_model(), {language: Elsewhere(rows) for language, rows in plain.items()}
    )
    assert found.fingerprints == MWandaPruner(config_of(), progress=False).calibrate(make_model(), plain).fingerprints


def test_coverage_is_that_of_the_text_that_was_read_last(ran: threading.Event) -> None:
    model, pruner = make_model(), MWandaPruner(config_of(), progress=False)
    pruner.calibrate(model, {"en": by_language()["en"]})
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(math.nan)
    for work in (pruner.calibrate, pruner.prune):
        with pytest.raises(FloatingPointError):
            work(model, by_language())
        assert [entry.language for entry in pruner.coverage] == ["en", "fr", "sw"]
    with pytest.raises(ValueError, match="No language has enough tokens"):
        pruner.prune(model, {"sw": []})
    assert pruner.coverage == ()


def test_settings_are_compared_with_the_labels_before_a_row_is_read() -> None:
    rows = Rows(by_language()["en"], lambda: pytest.fail("a row was read"))
    for settings, message in (
        ({"samples_per_language": {"ne": 3}}, "samples_per_language names 'ne', but calibration has: en, sw"),
        ({"languages": ["en", "ne"]}, "Language 'ne' was asked for, but the dataset has: 'en', 'sw'"),
    ):
        with pytest.raises(ValueError, match=message):
            CalibrationText({"en": rows, "sw": rows}, config_of(**settings), make_model())


def test_bar_ends_at_the_number_of_batches(capfd: pytest.CaptureFixture[str]) -> None:
    MWandaPruner(config_of()).calibrate(make_model(), by_language())
    assert "Calibrating: 100%" in capfd.readouterr().err
