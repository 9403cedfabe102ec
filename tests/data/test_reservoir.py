"""Rows that are drawn at random from a stream."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from optimum_mwanda import MWandaConfig
from optimum_mwanda.data.chunks import CalibrationChunks, build_chunks
from optimum_mwanda.data.packing import Packed
from optimum_mwanda.data.reservoir import Reservoir
from tests.conftest import make_model

Row = dict[str, Any]
LENGTH = 8


class Numbers:
    """Takes numbered rows of known sizes until a language has enough."""

    def __init__(self, enough: int) -> None:
        self._enough = enough
        self.taken: dict[str, list[int]] = {}
        self.given: Counter[str] = Counter()
        self.encoded = 0

    def enough(self, language: str) -> int:
        return self._enough

    def encode(self, language: str, row: Any) -> Packed:
        self.encoded += 1
        return dict(row)

    def gives(self, encoded: Any) -> int:
        return int(encoded["size"])

    def add(self, language: str, row: Any, encoded: Any = None) -> None:
        assert encoded == row
        assert not self.is_full(language), "a row that nobody needs"
        self.taken.setdefault(language, []).append(row["number"])
        self.given[language] += row["size"]

    def is_full(self, language: str) -> bool:
        return self.given[language] >= self._enough


def draw(rows: Iterable[tuple[str, int, int]], enough: int, among: int = 10**6, seed: int = 0) -> Numbers:
    """Draws from rows of `(language, number, size)`."""
    sink = Numbers(enough)
    reservoir = Reservoir(sink, among, seed)
    for language, number, size in rows:
        if not reservoir.is_full(language):
            reservoir.add(language, {"number": number, "size": size})
    reservoir.pour()
    return sink


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 12), st.integers(1, 40), st.integers(0, 99))
def test_rows_are_those_of_a_shuffle_until_there_are_enough(
    sizes: list[int], enough: int, among: int, seed: int
) -> None:
    rows = [("sw", number, size) for number, size in enumerate(sizes)]
    order = draw(rows, 10**9, among, seed).taken.get("sw", [])  # nobody ever has so many: all of them, shuffled
    assert sorted(order) == [*range(min(among, len(sizes)))]
    expected: list[int] = []
    for number in order:
        if sum(sizes[taken] for taken in expected) >= enough:
            break
        expected.append(number)
    assert draw(rows, enough, among, seed).taken.get("sw", []) == expected


@given(st.integers(0, 2**40), st.lists(st.sampled_from(["en", "sw", "zu"]), max_size=40), st.data())
def test_draw_depends_on_the_seed_and_on_the_rows_of_its_language_alone(
    seed: int, order: list[str], data: st.DataObject
) -> None:
    def numbered(languages: list[str]) -> Iterator[tuple[str, int, int]]:
        count: Counter[str] = Counter()
        for language in languages:
            yield language, count[language], 1
            count[language] += 1

    other = data.draw(st.permutations(order))
    assert draw(numbered(order), 3, seed=seed).taken == draw(numbered(other), 3, seed=seed).taken


def test_every_row_of_a_language_is_drawn_equally_often() -> None:
    rows = [("sw", number, 1) for number in range(12)] + [("en", 0, 1)] * 3
    drawn: Counter[int] = Counter()
    first: Counter[int] = Counter()
    trials = 3000
    for seed in range(trials):
        taken = draw(rows, 3, seed=seed).taken["sw"]
        drawn.update(taken)
        first.update(taken[:1])
    # Five standard deviations of a binomial; the seeds are fixed, so this is always the same draw.
    for counts, share in ((drawn, 3 / 12), (first, 1 / 12)):
        spread = 5 * (trials * share * (1 - share)) ** 0.5
        assert all(abs(counts[number] - trials * share) < spread for number in range(12)), counts


def test_languages_do_not_draw_alike() -> None:
    rows = [(language, number, 1) for language in ("en", "sw") for number in range(50)]
    taken = draw(rows, 10).taken
    assert taken["en"] != taken["sw"]


def test_rows_that_cannot_be_drawn_are_neither_encoded_nor_held() -> None:
    sink = Numbers(10)
    reservoir = Reservoir(sink, 10**6, 0)
    for number in range(5000):
        reservoir.add("sw", {"number": number, "size": 1})
        assert len(reservoir._draws["sw"].held) <= 10
    # 10 * (1 + ln(5000 / 10)) = 72 rows are expected to be among the first ten at some time.
    assert 30 < sink.encoded < 150


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_model()


def sharded(rows: int, shards: int, read: list[int], languages: str = "en sw") -> IterableDataset:
    """A stream of shards; row n of language l holds the token 10 * l + n."""

    def generate(shards: list[int]) -> Iterator[Row]:
        for shard in shards:
            for number in range(shard, rows, count):
                for index, language in enumerate(languages.split()):
                    read.append(number)
                    yield {"language": language, "input_ids": [1 + 40 * index + number] * LENGTH}

    count = shards
    return IterableDataset.from_generator(generate, gen_kwargs={"shards": list(range(shards))})


def chunks_of(dataset: Any, model: PreTrainedModel, tokenizer: Any = None, **changes: Any) -> CalibrationChunks:
    config = MWandaConfig(**{"sequence_length": LENGTH, "samples_per_language": 3, **changes})
    return build_chunks(dataset, config, model, tokenizer)


def first_tokens(chunks: CalibrationChunks) -> dict[str, list[int]]:
    return {language: part["input_ids"][:, 0].tolist() for language, (part,) in chunks.chunks.items()}


@pytest.mark.parametrize("shards", [1, 4])
def test_same_seed_and_shards_give_the_same_rows(model: PreTrainedModel, shards: int) -> None:
    def drawn(seed: int) -> dict[str, list[int]]:
        return first_tokens(chunks_of(sharded(32, shards, []), model, reservoir=32, seed=seed))

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert any(max(tokens) % 40 > 12 for tokens in drawn(0).values())  # and not only the first ones


def test_stream_is_read_until_every_language_can_be_drawn_from(model: PreTrainedModel) -> None:
    read: list[int] = []
    found = chunks_of(sharded(32, 1, read), model, reservoir=20, languages=["en", "sw"])
    assert len(read) == 40
    assert {entry.language: entry.rows for entry in found.coverage} == {"en": 3, "sw": 3}
    assert max(token % 40 for tokens in first_tokens(found).values() for token in tokens) <= 20


def test_fewer_rows_than_the_reservoir_holds_are_all_there_is(model: PreTrainedModel) -> None:
    assert {*first_tokens(chunks_of(sharded(3, 1, []), model, reservoir=99))["sw"]} == {41, 42, 43}


def test_streams_of_a_dict_are_drawn_from_and_its_tables_are_read_as_ever(model: PreTrainedModel) -> None:
    read: list[int] = []
    table = Dataset.from_list([{"input_ids": [60 + number] * LENGTH} for number in range(30)])
    dataset = {"en": sharded(32, 1, read, "en"), "sw": table}
    found = first_tokens(chunks_of(dataset, model, reservoir=10))
    assert len(read) == 10
    assert found["en"] == first_tokens(chunks_of(sharded(32, 1, [], "en"), model, reservoir=10))["en"]
    assert found["sw"] == first_tokens(chunks_of({"sw": table}, model))["sw"]


def test_long_row_that_is_drawn_gives_one_chunk_while_there_are_others(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [{"language": "en", "text": "the cat sat on the mat " * 9}, {"language": "en", "text": "le lit " * 9}] * 2
    stream = Dataset.from_list(rows).to_iterable_dataset()
    (part,) = chunks_of(stream, model, tokenizer, reservoir=4).chunks["en"]
    assert len(torch.unique(part["input_ids"], dim=0)) == 2  # two texts, each from its beginning
    (in_order,) = chunks_of(stream, model, tokenizer).chunks["en"]
    assert len(torch.unique(in_order["input_ids"], dim=0)) == 3


def test_one_drawn_row_that_ends_in_a_repeated_token_is_not_taken_for_padding(model: PreTrainedModel) -> None:
    stream = Dataset.from_list([{"language": "en", "input_ids": [*range(1, 20), 5, 5]}]).to_iterable_dataset()
    (part,) = chunks_of(stream, model, reservoir=4, samples_per_language=1).chunks["en"]
    assert part["input_ids"].tolist() == [[*range(1, 9)]]


@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from(["en", "sw"]), st.integers(0, 20)), min_size=1, max_size=30))
def test_whatever_the_rows_each_language_fills_as_many_chunks_as_from_a_table(
    model: PreTrainedModel, rows: list[tuple[str, int]]
) -> None:
    table = [{"language": language, "input_ids": [*range(1, size + 1)]} for language, size in [*rows, ("en", LENGTH)]]
    stream = IterableDataset.from_generator(lambda: iter(table))
    drawn = chunks_of(stream, model, reservoir=100)
    assert {entry.language: entry.chunks for entry in drawn.coverage} == {
        entry.language: entry.chunks for entry in chunks_of(table, model).coverage
    }
