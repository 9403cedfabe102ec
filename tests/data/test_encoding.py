import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    CamembertConfig,
    CamembertForMaskedLM,
    MPNetConfig,
    MPNetForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from optimum_mwanda.data.encoding import RowEncoder
from optimum_mwanda.modeling.positions import resolve_sequence_length
from tests.conftest import make_model

TEXT = "the cat sat sur le lit"


def encode(row: dict[str, Any], model: PreTrainedModel, tokenizer: Any = None, text_column: str = "text") -> list[int]:
    return RowEncoder(tokenizer, model, text_column).encode(row, "en")


@pytest.fixture
def saved(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A folder with a model and its tokenizer."""
    make_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_text_is_tokenised_as_the_tokenizer_does_by_default(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    ids = encode({"text": TEXT * 5}, model, tokenizer)
    assert ids == tokenizer(TEXT * 5)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert len(ids) > tokenizer.model_max_length


def test_processor_gives_its_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    processor = ProcessorMixin.__new__(ProcessorMixin)  # it has more parts in real life
    processor.tokenizer = tokenizer
    assert encode({"text": TEXT}, model, processor) == tokenizer(TEXT)["input_ids"]


def test_text_column_may_have_any_name(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    row = {"text": "le lit", "sentence": TEXT}
    assert encode(row, model, tokenizer, text_column="sentence") == tokenizer(TEXT)["input_ids"]


@pytest.mark.parametrize("text", [None, "", " \n\t", "\u3000"])
def test_null_and_blank_texts_have_no_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str | None
) -> None:
    assert encode({"text": text}, model, tokenizer) == []


@pytest.mark.parametrize("text", [5, ["the cat"], b"the cat", {"text": "the cat"}])
def test_text_that_is_no_string_is_refused(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: Any
) -> None:
    with pytest.raises(TypeError, match=f"Column 'text' holds a {type(text).__name__} for language 'en'.*input_ids"):
        encode({"text": text}, model, tokenizer)


def test_input_ids_are_taken_as_they_are_and_win_over_text(model: PreTrainedModel) -> None:
    assert encode({"input_ids": [5, 0, 95], "text": TEXT}, model) == [5, 0, 95]
    assert encode({"input_ids": []}, model) == []
    assert encode({"input_ids": None}, model) == []


def test_attention_mask_drops_padding_on_either_side(model: PreTrainedModel) -> None:
    assert encode({"input_ids": [0, 0, 7, 8, 0], "attention_mask": [0, 0, 1, 1, 0]}, model) == [7, 8]
    assert encode({"input_ids": [7, 8], "attention_mask": None}, model) == [7, 8]


def test_attention_mask_of_another_length_is_refused(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="attention_mask"):
        encode({"input_ids": [7, 8, 9], "attention_mask": [1, 1]}, model)


@pytest.mark.parametrize("wrong", [96, 1000, -1, -100])
def test_id_outside_the_vocabulary_is_named(model: PreTrainedModel, wrong: int) -> None:
    with pytest.raises(
        ValueError, match=f"Token id {wrong} of language 'en' lies outside the model's vocabulary of 96"
    ):
        encode({"input_ids": [5, wrong, 7]}, model)


def test_tokenizer_of_a_model_with_more_entries_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    model = make_model()
    model.resize_token_embeddings(4)
    with pytest.raises(ValueError, match=r"vocabulary of 4.*tokenizer belongs to"):
        encode({"text": TEXT}, model, tokenizer)


def test_text_finds_the_tokenizer_beside_the_model(saved: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved)
    assert encode({"text": TEXT}, model) == tokenizer(TEXT)["input_ids"]


@pytest.mark.parametrize("kind", [str, Path])
def test_tokenizer_may_be_a_path(saved: Path, tokenizer: PreTrainedTokenizerBase, kind: type) -> None:
    assert encode({"text": TEXT}, make_model(), kind(saved)) == tokenizer(TEXT)["input_ids"]


def test_model_without_a_name_asks_for_a_tokenizer(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="no name or path: pass tokenizer="):
        encode({"text": TEXT}, model)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_model_folder_without_tokenizer_asks_for_one(tmp_path: Path, family: str) -> None:
    make_model(family).save_pretrained(tmp_path / "bare")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"(?s)bare.*pass tokenizer="):
        encode({"text": TEXT}, model)


def test_wrong_tokenizer_path_is_named(tmp_path: Path, model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=r"(?s)absent.*pass tokenizer="):
        encode({"text": TEXT}, model, tmp_path / "absent")


def test_tokenised_rows_and_empty_texts_load_no_tokenizer(saved: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved)
    shutil.rmtree(saved)
    assert encode({"input_ids": [5]}, model) == [5]
    assert encode({"text": ""}, model) == []


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_sequence_length_is_bounded_by_the_positions_of_the_model(family: str) -> None:
    model = make_model(family)
    assert resolve_sequence_length(None, model) == 64
    assert resolve_sequence_length(64, model) == 64
    with pytest.raises(ValueError, match="sequence_length=65 exceeds the model's 64 positions"):
        resolve_sequence_length(65, model)


def test_sequence_length_defaults_to_512() -> None:
    model = make_model()
    model.config.max_position_embeddings = 4096
    assert resolve_sequence_length(None, model) == 512


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (XLMRobertaForMaskedLM, XLMRobertaConfig),
        (CamembertForMaskedLM, CamembertConfig),
        (MPNetForMaskedLM, MPNetConfig),
        (BertForMaskedLM, BertConfig),
    ],
)
def test_longest_sequence_is_one_that_the_model_takes(kind: Any, config: Any) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = kind(config(vocab_size=96, max_position_embeddings=34, pad_token_id=1, **sizes)).eval()
    limit = 34 if kind is BertForMaskedLM else 32
    assert resolve_sequence_length(None, model) == limit
    with pytest.raises(ValueError, match=f"sequence_length={limit + 1} exceeds the model's {limit} positions"):
        resolve_sequence_length(limit + 1, model)
    with torch.no_grad():
        model(input_ids=torch.full((1, limit), 7))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, limit + 1), 7))


class PictureProcessor:
    """It can be called, as a tokenizer can."""

    def __call__(self, pictures: Any) -> dict[str, Any]:
        return {"pixel_values": pictures}


@pytest.mark.parametrize(("thing", "kind"), [(5, "int"), (PictureProcessor(), "PictureProcessor")])
def test_what_is_not_a_tokenizer_is_refused_by_its_type(thing: Any, kind: str) -> None:
    with pytest.raises(TypeError, match=f"tokenizer is a {kind}: pass a tokenizer, its name or path"):
        RowEncoder(thing, make_model(), "text")
