"""Mixes of languages, and trainings that go on where they stopped."""

import copy
import logging
import math
import pickle
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from accelerate.data_loader import DataLoaderDispatcher, prepare_data_loader
from datasets import Dataset, IterableDataset
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainingArguments, default_data_collator

from optimum_mwanda import PerplexityComparison, mix_languages
from optimum_mwanda.training.language_mix import LanguageMix, apportion

from ..conftest import make_model
from ..evaluation.test_report import report

SIZES = {"en": 16, "fr": 9, "sw": 1}
ROWS = [{"language": name, "text": f"{name} {number}"} for name, size in SIZES.items() for number in range(size)]
OF_ENGLISH = PerplexityComparison(report(en=1), {"pruned": report(en=2)})
NEED = PerplexityComparison(report(en=1, fr=1, sw=1), {"pruned": report(en=2, fr=5, sw=10)})  # increases 1, 4 and 9


def streams(sizes: dict[str, int] = SIZES, shards: int = 1) -> dict[str, IterableDataset]:
    tables = {n: Dataset.from_list([row for row in ROWS if row["language"] == n]) for n in sizes}
    return {name: table.to_iterable_dataset(num_shards=min(shards, len(table))) for name, table in tables.items()}


def texts(mix: LanguageMix, count: int | None = None) -> list[str]:
    return [row["text"] for row in (mix.dataset if count is None else mix.dataset.take(count))]


def counted(rows: list[str]) -> dict[str, int]:
    return dict(Counter(row.split()[0] for row in rows))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"strategy": "equal", "size": 30}, {"en": 10, "fr": 10, "sw": 10}),
        ({"strategy": "temperature", "size": 80}, {"en": 40, "fr": 30, "sw": 10}),  # roots 4, 3 and 1
        ({"strategy": "temperature", "temperature": 1}, SIZES),
        ({"strategy": "need", "report": NEED, "size": 60}, {"en": 10, "fr": 20, "sw": 30}),  # roots 1, 2 and 3
        ({"strategy": "need", "report": NEED, "temperature": 1, "size": 140}, {"en": 10, "fr": 40, "sw": 90}),
        ({"strategy": {"en": 1, "fr": 1, "sw": 2, "yo": 9}, "size": 8}, {"en": 2, "fr": 2, "sw": 4}),
        ({"languages": ["fr", "sw"], "size": 8}, {"fr": 4, "sw": 4}),
    ],
)
def test_shares_are_exact(settings: dict[str, Any], expected: dict[str, int]) -> None:
    mix = mix_languages(ROWS, **settings)
    assert counted(texts(mix)) == expected == mix.drawn
    assert mix.shares == pytest.approx({name: rows / sum(expected.values()) for name, rows in expected.items()})


def test_need_gives_a_language_that_lost_little_a_tenth_of_the_worst() -> None:
    increases = PerplexityComparison(report(en=1, fr=1, sw=1), {"pruned": report(en=1.0, fr=1.5, sw=2.0)})
    mix = mix_languages(ROWS, strategy="need", report=increases, temperature=1, size=16)
    assert mix.drawn == {"en": 1, "fr": 5, "sw": 10}


def test_no_row_comes_again_before_all_of_its_language_have_come() -> None:
    mix = mix_languages(ROWS, size=36)
    counts = Counter(texts(mix))
    assert {counts[f"en {number}"] for number in range(16)} == {0, 1}
    assert {counts[f"fr {number}"] for number in range(9)} == {1, 2}
    assert counts["sw 0"] == 12


def test_a_mix_depends_on_its_seed_only() -> None:
    assert texts(mix_languages(ROWS)) == texts(mix_languages(ROWS)) != texts(mix_languages(ROWS, seed=1))
    assert len(texts(mix_languages(ROWS))) == len(ROWS)


def test_repetitions_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "optimum_mwanda"):
        mix = mix_languages(ROWS, size=36)
    assert caplog.messages == ["The mix goes through some languages more than once: 'fr' 1.33 times, 'sw' 12.00 times."]
    assert mix.epochs == {"en": 0.75, "fr": 12 / 9, "sw": 12}
    assert str(mix).splitlines()[2:] == [
        "| en       | 33.3 % |        16 |         12 |   0.75 |",
        "| fr       | 33.3 % |         9 |         12 |   1.33 |",
        "| sw       | 33.3 % |         1 |         12 |  12.00 |",
    ]


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=9), st.integers(0, 1000))
def test_counts_add_up_and_miss_no_share_by_a_row(weights: list[float], size: int) -> None:
    shares = {str(index): weight / sum(weights) for index, weight in enumerate(weights)}
    counts = apportion(shares, size)
    assert sum(counts.values()) == size
    assert all(abs(counts[name] - share * size) < 1 + 1e-6 for name, share in shares.items())


def test_streams_of_equal_shares_come_in_turn_and_without_end() -> None:
    mix = mix_languages(streams())
    assert isinstance(mix.dataset, IterableDataset)
    rows = texts(mix, 99)
    assert counted(rows) == {"en": 33, "fr": 33, "sw": 33}
    assert rows[:6] == ["en 0", "fr 0", "sw 0", "en 1", "fr 1", "sw 0"]
    assert rows[1::3][:10] == [*(f"fr {number}" for number in range(9)), "fr 0"]
    assert (mix.available, mix.drawn, mix.epochs) == (None, None, None)
    assert str(mix).splitlines()[2] == "| en       | 33.3 % |"


def test_streams_come_as_often_as_their_shares_say() -> None:
    counts = counted(texts(mix_languages(streams(), strategy="need", report=NEED), 3000))
    for name, share in {"en": 1 / 6, "fr": 2 / 6, "sw": 3 / 6}.items():
        assert abs(counts[name] - share * 3000) < 4 * math.sqrt(3000 * share * (1 - share))


def test_one_stream_with_a_language_column_is_as_good_as_a_dict() -> None:
    one = Dataset.from_list(ROWS).to_iterable_dataset()
    assert texts(mix_languages(one, languages=list(SIZES)), 50) == texts(mix_languages(streams()), 50)


def test_streams_are_read_no_further_than_needed() -> None:
    read: Counter[str] = Counter()

    def rows(language: str) -> Iterator[dict[str, Any]]:
        for number in range(10**6):
            read[language] += 1
            yield {"language": language, "text": f"{language} {number}"}

    features = Dataset.from_list(ROWS).features
    endless = {
        name: IterableDataset.from_generator(rows, features=features, gen_kwargs={"language": name})
        for name in ("en", "sw")
    }
    mix = mix_languages(endless)
    assert max(read.values()) == 1
    read.clear()
    assert len(list(mix.dataset.take(20))) == 20
    assert max(read.values()) <= 10 + 3


def chunked(kind: str, **settings: Any) -> LanguageMix:
    """Chunks of 8 token ids, each of which tells its language and its place."""
    sizes = {"en": 5 if kind == "short" else 20, "sw": 4}
    bases = {"en": 10, "sw": 50}
    rows = {name: [{"input_ids": [bases[name] + n] * 8} for n in range(size)] for name, size in sizes.items()}
    shards = 2 if kind == "sharded" else 1
    tables: dict[str, Any] = {name: Dataset.from_list(each) for name, each in rows.items()}
    if kind != "table":
        tables = {name: table.to_iterable_dataset(num_shards=shards) for name, table in tables.items()}
    strategy = {"en": 1, "sw": 2}
    return mix_languages(tables, make_model(), strategy=strategy, sequence_length=8, bos="none", seed=3, **settings)


class Watched(Trainer):
    """Remembers what it trains on."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen = [*getattr(self, "seen", []), inputs["input_ids"].tolist()]
        assert torch.equal(inputs["labels"], inputs["input_ids"])
        return super().training_step(model, inputs, *args, **kwargs)


def trainer(folder: Path, kind: str, workers: int, **settings: Any) -> Watched:
    arguments = TrainingArguments(
        str(folder), max_steps=10, save_steps=4, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        dataloader_num_workers=workers, use_cpu=True, report_to=[], disable_tqdm=True, seed=5, **settings,
    )  # fmt: skip
    return Watched(make_model(), arguments, train_dataset=chunked(kind).dataset)


@pytest.mark.parametrize(("kind", "workers"), [("table", 2), ("stream", 0), ("short", 0), ("sharded", 2)])
def test_a_training_that_is_resumed_sees_what_it_would_have_seen(tmp_path: Path, kind: str, workers: int) -> None:
    whole = trainer(tmp_path, kind, workers)
    whole.train()
    resumed = trainer(tmp_path / "again", kind, workers)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert len(whole.seen) == 20
    assert resumed.seen == whole.seen[8:]
    after, expected = resumed.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(after[name], expected[name]) for name in expected)


@pytest.mark.skipif(Version(datasets.__version__) < Version("4.8.5"), reason="loses its place in batches of a stream")
@pytest.mark.parametrize("kind", ["stream", "short", "sharded"])
def test_the_state_of_a_stream_can_be_saved_and_loaded(kind: str) -> None:
    def ids(rows: Iterable[Any], count: int) -> list[list[int]]:
        return [list(row["input_ids"]) for row in islice(rows, count)]

    whole = ids(chunked(kind).dataset, 100)
    for stop in (1, 7, 40):
        first = chunked(kind).dataset
        assert ids(iter(first), stop) == whole[:stop]
        second = chunked(kind).dataset
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        assert ids(second, 100 - stop) == whole[stop:]


def test_workers_share_the_shards_of_streams() -> None:
    def batches() -> list[list[list[int]]]:
        loader = DataLoader(chunked("sharded").dataset, batch_size=2, num_workers=2, collate_fn=default_data_collator)
        return [batch["input_ids"].tolist() for batch in islice(loader, 40)]

    first = batches()
    assert first == batches()
    assert {row[0] for batch in first for row in batch} == {*range(10, 30), *range(50, 54)}


def test_a_dispatcher_gives_rows_in_their_order() -> None:
    dataset = chunked("stream").dataset
    expected = [list(row["input_ids"]) for row in dataset.take(40)]
    loader = DataLoader(dataset, batch_size=2, collate_fn=default_data_collator)
    dispatcher = prepare_data_loader(loader, dispatch_batches=True, put_on_device=True)
    assert isinstance(dispatcher, DataLoaderDispatcher)
    assert [row for batch in islice(dispatcher, 20) for row in batch["input_ids"].tolist()] == expected


def test_chunks_are_the_same_from_tables_and_from_streams() -> None:
    def of(kind: str) -> set[tuple[int, ...]]:
        return {tuple(row["input_ids"]) for row in chunked(kind).dataset.take(20)}

    assert chunked("table").available == {"en": 20, "sw": 4}
    every = {(number,) * 8 for number in (*range(10, 30), *range(50, 54))}
    assert of("table") < every
    assert of("stream") < every


def test_texts_of_tables_and_of_streams_make_the_same_chunks(
    sample_model: PreTrainedModel, sample_rows: dict[str, list[dict[str, str]]]
) -> None:
    languages = ["en", "ta"]
    table = Dataset.from_list([row for row in sample_rows["calibration"] if row["language"] in languages])
    length = len(table) // 2  # as many tokens per chunk as rows per language, so that all of them are joined
    tables = mix_languages(table, sample_model, sequence_length=length)
    stream = mix_languages(table.to_iterable_dataset(), sample_model, languages=languages, sequence_length=length)
    assert tables.available is not None
    longest = max(tables.available.values())
    streamed = {(row["language"], *row["input_ids"]) for row in stream.dataset.take(2 * longest)}
    assert {(row["language"], *row["input_ids"]) for row in tables.dataset} <= streamed
    assert len(streamed) == sum(tables.available.values())


def test_mixes_can_be_sent_to_other_processes(sample_model: PreTrainedModel) -> None:
    stream = Dataset.from_list(ROWS).to_iterable_dataset()
    for dataset in (stream, streams()):
        mixed = mix_languages(dataset, sample_model, languages=list(SIZES), sequence_length=8).dataset
        first = [list(row["input_ids"]) for row in mixed.take(6)]
        assert [list(row["input_ids"]) for row in pickle.loads(pickle.dumps(mixed)).take(6)] == first


@pytest.mark.parametrize(
    ("dataset", "settings", "message"),
    [
        (ROWS, {"strategy": "fair"}, "strategy='fair' is not allowed: give equal, temperature, need, or a dict"),
        (ROWS, {"strategy": 3}, "strategy=3 is not allowed: give equal, temperature, need, or a dict"),
        (ROWS, {"strategy": None}, "strategy=None is not allowed"),
        (ROWS, {"seed": -1}, "seed=-1 is not allowed: give a whole number of at least 0"),
        (ROWS, {"seed": 1.5}, "seed=1.5 is not allowed"),
        (ROWS, {"strategy": "need"}, "give report=, dense against pruned"),
        (ROWS, {"size": 0}, "size=0 is not allowed: give a whole number of at least 1"),
        (ROWS, {"size": 1.5}, "size=1.5 is not allowed"),
        (ROWS, {"strategy": {"en": 1}}, "There is no weight for 'fr', 'sw', only for 'en'"),
        (ROWS, {"strategy": {"en": 1, "fr": 0, "sw": 1}}, "The weight of language 'fr'=0 is not allowed"),
        (ROWS, {"languages": ["yo"]}, "Language 'yo' was asked for, but the dataset has: 'en', 'fr', 'sw'"),
        ({"en": ["a"], "sw": []}, {}, "There are no rows for: 'sw'"),
        (streams(), {"strategy": "temperature"}, r"give strategy=temperature_weights\({language: rows or tokens}"),
        (ROWS, {"strategy": "need", "report": OF_ENGLISH}, "There is no weight for 'fr', 'sw', only for 'en'"),
        (streams(), {"size": 9}, "size=9 is for datasets with random access"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(dataset: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mix_languages(dataset, **settings)
