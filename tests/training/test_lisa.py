"""Which blocks train when."""

from collections import Counter

import pytest

from optimum_mwanda.training.lisa import blocks_to_train

BLOCKS = [f"model.layers.{index}" for index in range(12)]


def test_blocks_train_for_a_period_and_others_in_the_next() -> None:
    periods = [{blocks_to_train(BLOCKS, 2, step, 5, seed=1) for step in range(5 * n, 5 * n + 5)} for n in range(20)]
    assert all(len(period) == 1 for period in periods)
    assert len(set.union(*periods)) > 10


def test_the_choice_can_be_made_again_and_depends_on_the_seed() -> None:
    def choices(seed: int) -> list[tuple[str, ...]]:
        return [blocks_to_train(BLOCKS, 3, step, 1, seed) for step in range(8)]

    assert choices(1) == choices(1) != choices(2)


def test_blocks_are_distinct_in_order_and_equally_frequent() -> None:
    chosen = [blocks_to_train(BLOCKS, 3, step, 1) for step in range(2000)]
    assert all(len({*each}) == 3 and [*each] == sorted(each, key=BLOCKS.index) for each in chosen)
    counts = Counter(block for each in chosen for block in each)
    # 2000 draws with probability 1/4 have a standard deviation of 19.4.
    assert all(abs(counts[block] - 500) < 5 * 19.4 for block in BLOCKS)


@pytest.mark.parametrize("count", [-1, 13])
def test_more_blocks_than_there_are_cannot_train(count: int) -> None:
    with pytest.raises(ValueError, match=f"count={count} is not allowed: give 0 to 12, as many blocks"):
        blocks_to_train(BLOCKS, count, 0, 5)
