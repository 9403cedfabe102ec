from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from optimum_mwanda import MWandaConfig
from optimum_mwanda.data.chunks import CalibrationChunks, build_chunks
from optimum_mwanda.data.cutting import cut
from tests.conftest import make_rows

LENGTH = 8
TEXT = "the cat sat on the mat "


def pack(dataset: Any, model: PreTrainedModel, tokenizer: Any = None, **settings: Any) -> CalibrationChunks:
    options = {"sequence_length": LENGTH, "samples_per_language": 4} | settings
    return build_chunks(dataset, MWandaConfig(**options), model, tokenizer)


def ids_of(chunks: CalibrationChunks, language: str = "en") -> list[list[int]]:
    (part,) = chunks.chunks[language]
    found: list[list[int]] = part["input_ids"].tolist()
    return found


@given(
    ids=st.lists(st.integers(0, 3), max_size=60),
    prefix=st.lists(st.integers(0, 3), max_size=3),
    overlap=st.integers(0, 1),
    room=st.integers(1, 6),
)
def test_pieces_cover_every_token_once_and_begin_with_the_prefix(
    ids: list[int], prefix: list[int], overlap: int, room: int
) -> None:
    length = len(prefix) + overlap + room
    pieces = list(cut(ids, length, prefix, overlap))
    fresh = [ids[piece.start + (overlap if index else 0) : piece.end] for index, piece in enumerate(pieces)]
    covered = [token for part in fresh for token in part]
    assert covered == (ids if len(ids) > overlap else [])
    assert all(piece.of(ids)[: len(prefix)] == prefix for piece in pieces)
    assert all(len(piece.of(ids)) == piece.size == length for piece in pieces[:-1])
    assert all(part for part in fresh)
    # It is not put where it stands already.
    assert not any(piece.prefix and ids[piece.start :][: len(prefix)] == prefix for piece in pieces)


def test_every_chunk_begins_as_the_tokenizer_begins_a_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    texts = {"en": [TEXT * 2] * 3, "fr": ["le chat est sur le lit"] * 9}
    chunks = pack(texts, model, tokenizer)
    for language in texts:
        assert [len(chunk) for chunk in ids_of(chunks, language)] == [LENGTH] * 4
        assert {chunk[0] for chunk in ids_of(chunks, language)} == {tokenizer.bos_token_id}
    assert "bos" in MWandaConfig().to_dict()
    plain = pack(texts, model, tokenizer, bos="none")
    assert {chunk[0] for chunk in ids_of(plain)} != {tokenizer.bos_token_id}
    assert plain.fingerprints != chunks.fingerprints


def test_beginning_is_written_once_and_nothing_is_lost(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    whole = tokenizer(TEXT * 4)["input_ids"]
    chunks = ids_of(pack({"en": [TEXT * 4]}, model, tokenizer, samples_per_language=99))
    bare = [token for chunk in chunks for token in chunk[1:]]
    assert bare == whole[1:][: len(bare)]
    assert len(whole) - 1 - len(bare) < LENGTH - 1


def test_tokenizer_without_a_beginning_changes_nothing(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = None
    silent = type(tokenizer)(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")
    texts = {"en": [TEXT * 2] * 3}
    assert pack(texts, model, silent).fingerprints == pack(texts, model, silent, bos="none").fingerprints


def test_tokenised_rows_that_begin_so_are_like_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    texts = {"en": [TEXT * 2] * 3}
    rows = {"en": [{"input_ids": tokenizer(text)["input_ids"]} for text in texts["en"]]}
    assert pack(rows, model, tokenizer).fingerprints == pack(texts, model, tokenizer).fingerprints
    assert pack(rows, model).fingerprints == pack(texts, model, tokenizer, bos="none").fingerprints


def test_other_tokenised_rows_stay_as_they_are(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    for rows in (
        make_rows("en"),
        [{"language": "en", "input_ids": [1, *range(7, 40)], "position_ids": list(range(34))}],
        [{"language": "en", "input_ids": [1, 9, 9] * 9}, {"language": "en", "input_ids": [9] * 20}],
    ):
        assert pack(rows, model, tokenizer).fingerprints == pack(rows, model).fingerprints


def test_encoders_get_rows_as_the_tokenizer_writes_them(tokenizer: PreTrainedTokenizerBase) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    model = BertForMaskedLM(BertConfig(vocab_size=96, **sizes))
    texts = {"en": [TEXT * 4]}
    auto, none = (pack(texts, model, tokenizer, bos=bos) for bos in ("auto", "none"))
    assert torch.equal(auto.chunks["en"][0]["input_ids"], none.chunks["en"][0]["input_ids"])


def test_chunk_without_room_for_text_is_refused(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match=r"sequence_length=1 leaves no room .*ids 1\): give at least 2, or bos='none'"):
        pack({"en": [TEXT]}, model, tokenizer, sequence_length=1)
    assert ids_of(pack({"en": [TEXT]}, model, tokenizer, sequence_length=1, bos="none"))[0] == [1]


def test_no_more_rows_are_read_than_needed(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    (coverage,) = pack({"en": [TEXT * 2] * 20}, model, tokenizer).coverage
    assert (coverage.rows, coverage.chunks) == (4, 4)
