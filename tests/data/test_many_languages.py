"""A thousand languages: what is read, what is asked, what is held, and how much is said of them."""

import copy
import logging
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, IterableDataset, Sequence, Value
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from optimum_mwanda import MWandaConfig, MWandaPruner
from optimum_mwanda.data.chunks import CalibrationChunks, build_chunks
from optimum_mwanda.data.cutting import cut
from optimum_mwanda.data.encoding import RowEncoder
from optimum_mwanda.data.labels import group_rows, labels_of
from optimum_mwanda.data.packing import TextPacker
from optimum_mwanda.data.rows import feed
from tests.conftest import SIZES, state_of

Row = dict[str, Any]
LANGUAGES = [f"l{index:03d}" for index in range(1000)]
LENGTH = 8


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_hidden_layers": 1}))


class Asked:
    """Takes two rows of each language and counts how often it is asked."""

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()
        self.asked = 0

    def add(self, language: str, row: Any) -> None:
        assert self.rows[language] < 2
        self.rows[language] += 1

    def is_full(self, language: str) -> bool:
        self.asked += 1
        return self.rows[language] == 2


def rows_of(languages: list[str], rows: int, by_language: bool) -> Iterator[Row]:
    for outer in languages if by_language else range(rows):
        for inner in range(rows) if by_language else languages:
            language, number = (outer, inner) if by_language else (inner, outer)
            start = 3 + (7 * int(number) + int(str(language)[1:])) % 80
            yield {"language": language, "input_ids": [*range(start, start + LENGTH)]}


def stream_of(languages: list[str], rows: int, by_language: bool, read: list[int]) -> IterableDataset:
    def generate() -> Iterator[Row]:
        for row in rows_of(languages, rows, by_language):
            read.append(1)
            yield row

    return IterableDataset.from_generator(generate)


def chunks_of(dataset: Any, model: PreTrainedModel, **changes: Any) -> CalibrationChunks:
    config = MWandaConfig(**{"sequence_length": LENGTH, "samples_per_language": 2, **changes})
    return build_chunks(dataset, config, model)


@pytest.mark.parametrize("by_language", [False, True])
def test_a_language_is_asked_only_after_its_own_rows(by_language: bool) -> None:
    sink, read = Asked(), []
    columns = {"language_column": "language", "text_column": "text"}
    feed(stream_of(LANGUAGES, 5, by_language, read), sink, languages=LANGUAGES, **columns)
    assert sink.asked == sum(sink.rows.values()) == 2000
    # In turn, two rounds are enough; one language after the other, all but the last rows of the last language are read.
    assert len(read) == (4997 if by_language else 2000)


def test_stream_whose_languages_are_labels_ends_when_all_are_full(
    model: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    read: list[int] = []
    features = Features({"language": ClassLabel(names=["en", "sw"]), "input_ids": Sequence(Value("int64"))})

    def generate() -> Iterator[Row]:
        for number in range(20):
            read.append(number)
            yield {"language": number % 2, "input_ids": [*range(number, number + LENGTH)]}

    chunks = chunks_of(IterableDataset.from_generator(generate, features=features), model)
    assert [*chunks.chunks] == ["en", "sw"]
    assert len(read) == 4
    assert "read to its end" not in caplog.text


def test_memory_is_that_of_the_tokens(model: PreTrainedModel) -> None:
    packer = TextPacker(RowEncoder(None, model, "text", bos="none"), 64, lambda _: 4, 64)
    row = {"input_ids": list(range(3, 67))}
    tracemalloc.start()
    for _ in range(3):
        for language in LANGUAGES:
            packer.add(language, row)
    held = tracemalloc.get_traced_memory()[0]
    for language in LANGUAGES:
        packer.add(language, row)
    full = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 1000 * (3 * 64 * 8 * 1.25 + 1500)  # eight bytes per token, and a little per language
    assert full < held / 2  # what is left are tensors, which Python does not count
    assert all(packer.is_full(language) for language in LANGUAGES)


def test_rows_of_a_table_are_found_without_its_labels_in_memory() -> None:
    table = Dataset.from_dict({"language": LANGUAGES * 50, "text": ["a"] * 50_000})
    tracemalloc.start()
    groups = group_rows(labels_of(table, "language"), "language")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert groups["l007"].tolist() == [*range(7, 50_000, 1000)]
    assert peak < 50_000 * 45  # a list of its labels alone would take 65 bytes per row


@given(st.integers(1, 6), st.integers(1, 5), st.lists(st.integers(1, 12), min_size=1, max_size=20), st.integers(0, 2))
def test_language_is_full_when_its_tokens_fill_all_chunks(
    model: PreTrainedModel, length: int, chunks: int, sizes: list[int], prefix: int
) -> None:
    length += prefix
    encoder = RowEncoder(None, model, "text", bos="none")
    encoder._prefix = (1, 2)[:prefix]
    packer = TextPacker(encoder, length, lambda _: chunks, 10**6)
    packer._cutter.see = lambda *_: None  # type: ignore[method-assign]  # rows of ids begin with the prefix or not
    ids: list[int] = []
    for size in sizes:
        if packer.is_full("sw"):
            break
        packer.add("sw", {"input_ids": list(range(3, 3 + size))})
        ids += range(3, 3 + size)
        whole = [piece.of(ids) for piece in cut(ids, length, encoder.prefix) if piece.size == length]
        assert packer.is_full("sw") == (len(whole) >= chunks)
    found = [part["input_ids"].tolist() for part in packer.batches("sw")]
    assert found == ([whole[:chunks]] if whole else [])


def test_a_thousand_languages_are_calibrated_and_pruned(model: PreTrainedModel) -> None:
    read: list[int] = []
    config = MWandaConfig(sequence_length=LENGTH, samples_per_language=1, languages=LANGUAGES, batch_size=1)
    pruner = MWandaPruner(config, progress=False)
    statistics = pruner.calibrate(model, stream_of(LANGUAGES, 3, False, read))
    assert len(read) == len(statistics.languages) == 1000
    assert set(statistics.tokens.values()) == {LENGTH}

    halves = [statistics.select(LANGUAGES[::2]), statistics.select(LANGUAGES[1::2])]
    merged = halves[0].merge(halves[1])
    assert merged.languages == statistics.languages
    assert merged.coverage == statistics.coverage
    assert merged.fingerprint == statistics.fingerprint
    for name, entry in statistics.weights.items():
        assert torch.equal(merged.weights[name].square_sum, entry.square_sum)
    pruned = [state_of(pruner.apply(copy.deepcopy(model), found)) for found in (statistics, merged)]
    assert all(torch.equal(pruned[0][name], pruned[1][name]) for name in pruned[0])


def test_messages_name_a_few_of_many_languages(model: PreTrainedModel, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"language": language, "input_ids": [5, 6, 7]} for language in LANGUAGES]
    with pytest.raises(ValueError, match=r"'l000' 3, .*'l007' 3 and 992 more\)") as raised:
        chunks_of(rows, model)
    assert len(str(raised.value)) < 400
    with pytest.raises(ValueError, match=r"'l000', .*'l019' and 980 more\. Did you mean 'l001'\?") as raised:
        chunks_of(rows, model, languages=["L001"])
    assert len(str(raised.value)) < 400
    with caplog.at_level(logging.WARNING, "optimum_mwanda"):
        chunks_of([*rows, {"language": "en", "input_ids": [*range(LENGTH)]}], model)
        chunks_of({"en": [{"input_ids": [*range(LENGTH)]}], **{language: [] for language in LANGUAGES}}, model)
    assert len(caplog.messages) == 2
    assert max(map(len, caplog.messages)) < 400
