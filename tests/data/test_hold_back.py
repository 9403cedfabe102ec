"""A part of every language's chunks is held back."""

import pytest
import torch

from optimum_mwanda.data.chunks import CalibrationChunks
from optimum_mwanda.data.hold_back import hold_back


def chunks(**counts: int) -> CalibrationChunks:
    """Chunks whose tokens are their number in the language; those of an odd number are longer and come apart."""
    parts = {}
    for language, count in counts.items():
        even, odd = torch.arange(0, count, 2), torch.arange(1, count, 2)
        both = [{"input_ids": numbers[:, None].repeat(1, 2 + i)} for i, numbers in enumerate((even, odd))]
        parts[language] = tuple(part for part in both if len(part["input_ids"]))
    return CalibrationChunks(parts, ())


def numbers(found: CalibrationChunks) -> dict[str, list[int]]:
    return {
        language: [int(row[0]) for part in parts for row in part["input_ids"]]
        for language, parts in found.chunks.items()
    }


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, {}), (0.01, {"en": 1, "sw": 1}), (0.25, {"en": 2, "sw": 1}), (0.9, {"en": 7, "sw": 1})],
)
def test_a_share_of_each_language_is_held_back_and_the_rest_is_left(share: float, expected: dict[str, int]) -> None:
    left, held = (numbers(part) for part in hold_back(chunks(en=8, sw=2, yo=1), share, 0))
    assert {language: len(found) for language, found in held.items()} == expected
    for language, count in {"en": 8, "sw": 2, "yo": 1}.items():
        assert sorted(left[language] + held.get(language, [])) == list(range(count))


def test_the_seed_alone_chooses() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = numbers(hold_back(chunks(en=40), 0.25, 3)[1])
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert one == numbers(hold_back(chunks(en=40), 0.25, 3)[1]) != numbers(hold_back(chunks(en=40), 0.25, 4)[1])
