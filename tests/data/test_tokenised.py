from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_mwanda.data.padding import Padding
from optimum_mwanda.data.tokenised import tokenised_inputs, tokenised_labels

VOCABULARY = 96
POSITIONS = 64

FORMS = {"list": list, "tuple": tuple, "array": np.asarray, "tensor": torch.tensor}


def inputs(row: dict[str, Any], positions: int | None = POSITIONS) -> dict[str, list[int]]:
    return tokenised_inputs(row, "en", VOCABULARY, positions, Padding("input_ids", None, ()))


@given(
    tokens=st.lists(st.tuples(st.integers(0, VOCABULARY - 1), st.integers(0, POSITIONS - 1)), min_size=1),
    padding=st.lists(st.tuples(st.booleans(), st.integers(-200, 200)), max_size=8),
    form=st.sampled_from(list(FORMS)),
    boolean=st.booleans(),
)
def test_masked_tokens_are_dropped_as_if_they_had_not_been_there(
    tokens: list[tuple[int, int]], padding: list[tuple[bool, int]], form: str, boolean: bool
) -> None:
    entries = [(*token, 1) for token in tokens]
    for left, anything in padding:
        entries.insert(0 if left else len(entries), (anything, anything, 0))
    ids, positions, mask = (FORMS[form](list(column)) for column in zip(*entries, strict=True))
    if boolean:
        mask = FORMS[form]([bool(kept) for kept in mask])
    found = inputs({"input_ids": ids, "position_ids": positions, "attention_mask": mask})
    assert found == {"input_ids": [token for token, _ in tokens], "position_ids": [position for _, position in tokens]}
    assert inputs({"input_ids": ids, "attention_mask": mask}) == {"input_ids": found["input_ids"]}


def labels_of(row: dict[str, Any]) -> list[int]:
    return tokenised_labels(row, "en", VOCABULARY, Padding("labels", None, ()))


def test_row_of_padding_alone_has_no_tokens() -> None:
    assert inputs({"input_ids": [5, 5], "attention_mask": [0, 0]}) == {"input_ids": []}
    assert inputs({"input_ids": [], "attention_mask": []}) == {"input_ids": []}


@pytest.mark.parametrize(("mask", "shown"), [([1, 2], "2"), ([-1, 1], "-1"), ([1.0, 0.5], "0.5"), ([1, None], "None")])
def test_mask_that_is_not_binary_is_refused(mask: list[Any], shown: str) -> None:
    with pytest.raises(ValueError, match=f"attention_mask of language 'en' holds {shown}: give 1 .*position_ids"):
        inputs({"input_ids": [7, 8], "attention_mask": mask})


@pytest.mark.parametrize("column", ["attention_mask", "position_ids"])
@pytest.mark.parametrize("values", [[1], [1, 1, 1], []])
def test_every_token_needs_an_entry(column: str, values: list[int]) -> None:
    with pytest.raises(ValueError, match=f"language 'en' has 2 input_ids and {len(values)} entries in {column}"):
        inputs({"input_ids": [7, 8], column: values})


@pytest.mark.parametrize("wrong", [-1, POSITIONS])
def test_position_outside_the_model_is_named(wrong: int) -> None:
    row = {"input_ids": [7, 8], "position_ids": [0, wrong]}
    with pytest.raises(ValueError, match=f"Position {wrong} of language 'en' lies outside .* positions: 0 to 63"):
        inputs(row)


def test_model_without_a_bound_takes_any_position_from_zero() -> None:
    assert inputs({"input_ids": [7], "position_ids": [10**6]}, positions=None)["position_ids"] == [10**6]
    with pytest.raises(ValueError, match=r"Position -1 .* from 0"):
        inputs({"input_ids": [7], "position_ids": [-1]}, positions=None)


@pytest.mark.parametrize("column", ["input_ids", "position_ids"])
@pytest.mark.parametrize("values", [[1.0, 2.0], ["1", "2"], [None, 1]])
def test_ids_and_positions_are_whole_numbers(column: str, values: list[Any]) -> None:
    with pytest.raises(TypeError, match=f"The {column} of language 'en' are .*whole numbers"):
        inputs({"input_ids": [7, 8]} | {column: values})


def test_labels_that_mark_padding_are_dropped() -> None:
    assert labels_of({"labels": [-100, 7, -100, 8, -100]}) == [7, 8]
    assert labels_of({"labels": [-100]}) == []


@pytest.mark.parametrize("wrong", [-1, VOCABULARY])
def test_label_outside_the_vocabulary_is_named(wrong: int) -> None:
    with pytest.raises(ValueError, match=f"Token id {wrong} of language 'en' lies outside"):
        labels_of({"labels": [5, wrong]})
