"""Positions on their way into batches; `test_dataset.py` has what goes for all data."""

import hashlib
import itertools
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import BloomConfig, BloomForCausalLM, PreTrainedModel

from optimum_mwanda import MWandaConfig
from optimum_mwanda.data.chunks import CalibrationChunks, build_chunks
from tests.conftest import FAMILIES, make_model, make_rows

Row = dict[str, Any]
LENGTH = 8


def pack(dataset: Any, model: PreTrainedModel, tokenizer: Any = None, **settings: Any) -> CalibrationChunks:
    return build_chunks(
        dataset, MWandaConfig(**{"sequence_length": LENGTH, "samples_per_language": 4} | settings), model, tokenizer
    )


def positioned(lengths: list[int], language: str = "en") -> list[Row]:
    """Rows in which a token's id is its position and 7."""
    return [{"language": language, "input_ids": list(range(7, 7 + n)), "position_ids": list(range(n))} for n in lengths]


@given(st.lists(st.integers(0, 30), max_size=12))
def test_positions_travel_with_their_tokens(model: PreTrainedModel, lengths: list[int]) -> None:
    rows = positioned([*lengths, LENGTH])
    (part,) = pack(rows, model).chunks["en"]
    assert part["position_ids"].shape == part["input_ids"].shape
    assert torch.equal(part["position_ids"] + 7, part["input_ids"])
    plain = [{"language": row["language"], "input_ids": row["input_ids"]} for row in rows]
    assert torch.equal(pack(plain, model).chunks["en"][0]["input_ids"], part["input_ids"])


def test_positions_travel_in_a_stream(model: PreTrainedModel) -> None:
    stream = Dataset.from_list(positioned([5, 30, 2])).to_iterable_dataset()
    (part,) = pack(stream, model).chunks["en"]
    assert part["position_ids"].flatten().tolist() == [*range(5), *range(27)]


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_that_restart_keep_packed_rows_apart(family: str) -> None:
    model = make_model(family).eval()
    rows = [
        {"language": "en", "input_ids": row["input_ids"][:length], "position_ids": list(range(length))}
        for row, length in zip(make_rows("en"), (3, 5, 2, 7), strict=True)
    ]
    ((_, inputs),) = pack(rows, model).batches(2)
    ids, positions = (values.flatten() for values in inputs.values())
    assert ids.shape == (2 * LENGTH,)

    def states(**inputs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            hidden = model(**inputs, use_cache=False, output_hidden_states=True).hidden_states
        return torch.stack(hidden).flatten(1, 2)

    # A row that the end of a chunk cuts goes on as a sequence of its own.
    starts = sorted({0, LENGTH, *torch.nonzero(positions == 0).flatten().tolist()})
    assert len(starts) >= 4
    alone = [
        states(input_ids=ids[None, start:end], position_ids=positions[None, start:end])
        for start, end in itertools.pairwise([*starts, 2 * LENGTH])
    ]
    torch.testing.assert_close(states(**inputs), torch.cat(alone, dim=1), rtol=1e-4, atol=1e-5)
    mixed = states(input_ids=inputs["input_ids"])
    assert not torch.allclose(mixed, torch.cat(alone, dim=1), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("first", [False, True])
def test_all_rows_have_positions_or_none_has(model: PreTrainedModel, first: bool) -> None:
    rows = positioned([5, 5])
    del rows[first]["position_ids"]
    with pytest.raises(ValueError, match=r"position_ids.*in all rows or in none"):
        pack(rows, model)
    rows[first]["input_ids"] = []
    rows += positioned([LENGTH])
    assert "position_ids" in pack(rows, model).chunks["en"][0]


def test_model_that_takes_no_positions_is_named() -> None:
    model = BloomForCausalLM(BloomConfig(vocab_size=96, hidden_size=32, n_layer=1, n_head=4))
    with pytest.raises(ValueError, match="BloomForCausalLM takes no position_ids: leave that column out"):
        pack(positioned([LENGTH]), model)


def test_fingerprint_covers_positions_and_is_that_of_the_ids_without_them(model: PreTrainedModel) -> None:
    rows = positioned([LENGTH])
    plain = [{"language": "en", "input_ids": rows[0]["input_ids"]}]
    ids = torch.tensor(plain[0]["input_ids"]).numpy().astype("<i8").tobytes()
    assert pack(plain, model).fingerprints == {"en": hashlib.sha256(b"(1, 8)\0" + ids).hexdigest()}
    moved = [{**rows[0], "position_ids": list(range(1, LENGTH + 1))}]
    assert len({pack(dataset, model).fingerprints["en"] for dataset in (plain, rows, moved)}) == 3


def test_positions_are_no_tokens(model: PreTrainedModel) -> None:
    chunks = pack(positioned([2 * LENGTH]), model)
    assert chunks.tokens == {"en": 2 * LENGTH} == {c.language: c.tokens for c in chunks.coverage}
