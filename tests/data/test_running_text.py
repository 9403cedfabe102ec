"""Rows that become chunks to train on, a few at a time."""

import copy
import pickle

import pytest
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerBase

from optimum_mwanda.data.by_language import split_by_language
from optimum_mwanda.data.columns import Columns
from optimum_mwanda.data.encoding import RowEncoder
from optimum_mwanda.data.running_text import ROWS_AT_A_TIME, RunningText, make_chunks

from ..conftest import make_model

COLUMNS = Columns("language", "text")


def of_ids(length: int) -> RunningText:
    return RunningText("sw", RowEncoder(None, make_model(), "text", bos="none"), length, "language")


def test_rows_are_joined_cut_and_filled_up_from_the_beginning() -> None:
    chunks = of_ids(4)({"input_ids": [[5, 6, 7], [8, 9, 10], [11]]})
    assert [chunk.tolist() for chunk in chunks["input_ids"]] == [[5, 6, 7, 8], [9, 10, 11, 5]]
    assert chunks["labels"] == chunks["input_ids"]
    assert chunks["language"] == ["sw", "sw"]


def test_a_language_of_few_tokens_fills_a_chunk_with_repetitions() -> None:
    (chunk,) = of_ids(7)({"input_ids": [[5, 6, 7]]})["input_ids"]
    assert chunk.tolist() == [5, 6, 7, 5, 6, 7, 5]


def test_rows_without_tokens_give_nothing() -> None:
    assert of_ids(4)({"input_ids": [[], []]}) == {"input_ids": [], "labels": [], "language": []}


def test_every_chunk_begins_as_the_tokenizer_begins_a_text(sample_tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = RowEncoder(sample_tokenizer, make_model(), "text")
    encoder._vocabulary = len(sample_tokenizer)
    prefix = list(encoder.prefix)
    chunks = RunningText("en", encoder, 16, "language")({"text": ["A function groups instructions under a name."] * 9})
    assert prefix
    assert len(chunks["input_ids"]) > 2
    assert all(chunk[: len(prefix)].tolist() == prefix and len(chunk) == 16 for chunk in chunks["input_ids"])


def test_few_rows_are_read_for_short_chunks_and_no_more_than_a_bound_for_long_ones() -> None:
    assert (of_ids(16).rows, of_ids(10**6).rows) == (16, ROWS_AT_A_TIME)


def test_copies_share_the_tokenizer_and_other_processes_can_have_one() -> None:
    text = of_ids(4)
    assert copy.deepcopy(text) is text
    again = pickle.loads(pickle.dumps(text))
    assert again({"input_ids": [[5, 6, 7, 8]]})["input_ids"][0].tolist() == [5, 6, 7, 8]
    assert b"Llama" not in pickle.dumps(text).replace(b"LlamaConfig", b"")  # no weights travel with it


@pytest.mark.parametrize("column", ["labels", "position_ids"])
def test_rows_that_are_ready_for_training_are_refused(column: str) -> None:
    parts = split_by_language([{"language": "sw", "input_ids": [5, 6], column: [5, 6]}], COLUMNS)
    with pytest.raises(ValueError, match=f"'sw' have {column}, so they are ready for training: mix them as they are"):
        make_chunks(parts, make_model(), None, 4, "none", COLUMNS)


def test_wrong_input_is_an_error_before_training() -> None:
    stream = split_by_language([{"language": "sw", "input_ids": [5, 600]}], COLUMNS)["sw"].to_iterable_dataset()
    with pytest.raises(ValueError, match="Token id 600 of language 'sw' lies outside"):
        make_chunks({"sw": stream}, make_model(), None, 4, "none", COLUMNS)
    with pytest.raises(ValueError, match="Column 'text' is missing"):
        make_chunks(
            split_by_language([{"language": "sw", "words": "a"}], COLUMNS), make_model(), None, 4, "none", COLUMNS
        )
    empty = split_by_language([{"language": "sw", "input_ids": []}], COLUMNS)
    with pytest.raises(ValueError, match="There is no text in: 'sw'"):
        make_chunks(empty, make_model(), None, 4, "none", COLUMNS)
    with pytest.raises(ValueError, match="sequence_length=4096 exceeds the model's 64 positions"):
        make_chunks(empty, make_model(), None, 4096, "none", COLUMNS)


def test_models_that_do_not_continue_text_are_refused() -> None:
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    model = BertForMaskedLM(BertConfig(vocab_size=96, **sizes))
    with pytest.raises(ValueError, match="BertForMaskedLM does not continue running text: leave model out"):
        make_chunks({}, model, None, 4, "auto", COLUMNS)
