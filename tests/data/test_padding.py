import logging
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from optimum_mwanda import MWandaConfig, evaluate_languages
from optimum_mwanda.data.chunks import build_chunks
from optimum_mwanda.data.padding import Padding
from tests.conftest import make_model
from tests.storage.families import make_family

PAD, EOS = 3, 2


def kept(ids: list[int], token: int | None = PAD, ends: tuple[int, ...] = (EOS,)) -> list[int]:
    row = np.array(ids, dtype=np.int64)
    found: list[int] = row[Padding("input_ids", token, ends).kept(row)].tolist()
    return found


@given(st.integers(0, 5), st.lists(st.integers(4, 9), min_size=1), st.integers(0, 5))
def test_runs_of_two_at_an_end_are_padding(left: int, text: list[int], right: int) -> None:
    expected = [*([PAD] if left == 1 else []), *text, *([PAD] if right == 1 else [])]
    assert kept([PAD] * left + text + [PAD] * right) == expected
    assert kept([EOS] * left + text + [EOS] * right, EOS) == [EOS] * left + text + [EOS] * right


def test_padding_within_a_row_and_rows_of_it_alone() -> None:
    assert kept([7, PAD, PAD, 8]) == [7, PAD, PAD, 8]
    assert kept([PAD, PAD, PAD]) == []
    assert kept([PAD]) == [PAD]
    assert kept([]) == []
    assert kept([7, 7], None, ()) == [7, 7]


def padded(length: int = 12, token: int = PAD, count: int = 4) -> list[dict[str, Any]]:
    return [
        {"language": "en", "input_ids": [9, 8, 7, *[token] * (length - 3)][:length] if n else [*range(9, 9 + length)]}
        for n in range(count)
    ]


def test_padding_of_the_model_or_the_tokenizer_is_left_out_with_one_warning(
    tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model()
    model.config.pad_token_id = PAD
    config = MWandaConfig(sequence_length=4)
    with caplog.at_level(logging.WARNING, "optimum_mwanda"):
        chunks = build_chunks(padded(), config, model)
    assert not (chunks.chunks["en"][0]["input_ids"] == PAD).any()
    assert caplog.messages == [
        "3 of 4 tokenised rows begin or end in runs of token 3: the input_ids have no attention mask, and these runs "
        "are left out as padding. Give an 'attention_mask' to say what is padding."
    ]
    other = make_model()
    other.config.eos_token_id = None
    by_tokenizer = build_chunks(padded(token=tokenizer.pad_token_id), config, other, tokenizer)
    assert by_tokenizer.fingerprints == chunks.fingerprints
    assert evaluate_languages(model, None, padded(), progress=False).scores["en"].tokens == 12 + 3 * 3 - 1


def test_given_mask_is_believed(caplog: pytest.LogCaptureFixture) -> None:
    model = make_model()
    model.config.pad_token_id = PAD
    rows = [{**row, "attention_mask": [1] * 12} for row in padded()]
    chunks = build_chunks(rows, MWandaConfig(sequence_length=4), model)
    assert (chunks.chunks["en"][0]["input_ids"] == PAD).sum() == 3 * 9
    assert not caplog.messages


@pytest.mark.parametrize("pad", [None, EOS])
def test_padding_that_may_end_a_text_is_refused_where_all_rows_have_one_length(pad: int | None) -> None:
    model = make_model()
    model.config.pad_token_id = pad
    rows = padded(token=EOS)
    with pytest.raises(ValueError, match=r"3 of 4 tokenised rows .* token 2, all rows have 12 input_ids"):
        build_chunks(rows, MWandaConfig(sequence_length=4), model)
    with pytest.raises(ValueError, match="looks like padding"):
        evaluate_languages(model, None, rows, progress=False)
    rows[1]["input_ids"].append(EOS)
    assert (build_chunks(rows, MWandaConfig(sequence_length=4), model).chunks["en"][0]["input_ids"] == EOS).any()


def test_padding_by_a_token_that_nobody_names_is_refused() -> None:
    model = make_model()
    model.config.pad_token_id = None
    with pytest.raises(ValueError, match=r"3 of 4 .* of token 5, .* neither model nor tokenizer names a padding token"):
        build_chunks(padded(token=5), MWandaConfig(sequence_length=4), model)
    for row, token in zip(rows := padded(count=4), (4, 5, 6, 7), strict=True):
        row["input_ids"][-2:] = [token, token]  # texts that happen to end in a word said twice
    assert len(build_chunks(rows, MWandaConfig(sequence_length=4), model).chunks["en"]) > 0
    one_of_two = padded(token=5, count=2)
    assert len(build_chunks(one_of_two, MWandaConfig(sequence_length=4), model).chunks["en"]) > 0


def test_labels_may_be_padded_too() -> None:
    t5 = make_family("t5")
    rows = [{"language": "sw", "input_ids": [5, 6, 7, 0, 0], "labels": [8, 9, 0, 0]}]
    (part,) = build_chunks(rows, MWandaConfig(sequence_length=8), t5).chunks["sw"]
    assert {name: ids.tolist() for name, ids in part.items()} == {"input_ids": [[5, 6, 7]], "labels": [[8, 9]]}
