"""Who does what."""

import hypothesis
import pytest
import torch
from hypothesis import strategies

from optimum_mwanda.calibration.reduction import deal
from optimum_mwanda.data.chunks import CalibrationChunks
from optimum_mwanda.processes.dealing import even_part, owners
from optimum_mwanda.processes.group import Processes


@pytest.mark.parametrize(("count", "sizes"), [(7, [3, 2, 2]), (3, [1, 1, 1]), (2, [1, 1, 0]), (0, [0, 0, 0])])
def test_equal_things_are_dealt_in_order(count: int, sizes: list[int]) -> None:
    parts = [even_part(count, rank, 3) for rank in range(3)]
    assert [len(part) for part in parts] == sizes
    assert [thing for part in parts for thing in part] == list(range(count))


def test_the_dearest_things_are_dealt_first() -> None:
    assert owners([1, 5, 3, 3, 2], 2) == [1, 0, 1, 1, 0]
    assert owners([], 2) == []


@hypothesis.given(
    strategies.lists(strategies.lists(strategies.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=5),
    strategies.integers(2, 7),
)
def test_every_chunk_is_dealt_once_and_shared_languages_are_known(counts: list[list[int]], size: int) -> None:
    start = iter(range(10**6))
    chunks = {
        f"l{row}": tuple(
            {"input_ids": torch.tensor([[next(start)] * (3 + part) for _ in range(count)])}
            for part, count in enumerate(batches)
        )
        for row, batches in enumerate(counts)
    }
    whole = CalibrationChunks(chunks, ())
    dealt = [deal(whole, Processes(rank, size)) for rank in range(size)]
    found = [row for own, _ in dealt for _, inputs in own.batches(2) for row in inputs["input_ids"].tolist()]
    assert found == [row for _, inputs in whole.batches(2) for row in inputs["input_ids"].tolist()]
    reduce = dealt[0][1]
    assert reduce is not None
    shared = {language for language in chunks if sum(language in own.chunks for own, _ in dealt) > 1}
    assert set(reduce.divided) == shared
    amounts = [sum(len(inputs["input_ids"]) for _, inputs in own.batches(1)) for own, _ in dealt]
    assert max(amounts) - min(amounts) <= 1


def test_one_process_gets_everything() -> None:
    whole = CalibrationChunks({}, ())
    assert deal(whole, Processes()) == (whole, None)
