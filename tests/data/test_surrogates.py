from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from optimum_mwanda import MWandaConfig, evaluate_languages
from optimum_mwanda.data.chunks import build_chunks
from optimum_mwanda.data.surrogates import check_whole
from optimum_mwanda.evaluation.harness.tasks import write_language_tasks
from tests.storage.families import make_family

BROKEN = "the cat \ud83d sat on the mat"
MESSAGE = (
    r"text of language 'sw' \(column 'text'\) holds half of a character at position 8, the lone surrogate '\\ud83d'"
)


def test_message_shows_what_is_wrong_and_what_to_do() -> None:
    check_whole("ñ 😀 \ufffd", "A text")
    with pytest.raises(
        ValueError, match=r"A text holds .* in 'the cat \\ud83d sat on the mat': .* Clean the text with"
    ):
        check_whole(BROKEN, "A text")
    mended = BROKEN.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert mended == BROKEN.replace("\ud83d", "\ufffd")


def test_text_with_half_of_a_character_names_its_language(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    texts = {"en": ["the cat sat on the mat"], "sw": [BROKEN]}
    with pytest.raises(ValueError, match=MESSAGE):
        build_chunks(texts, MWandaConfig(sequence_length=8), model, tokenizer)
    with pytest.raises(ValueError, match=MESSAGE):
        evaluate_languages(model, tokenizer, texts, progress=False)
    with pytest.raises(ValueError, match=MESSAGE):
        write_language_tasks(texts, tmp_path)


def test_so_do_conversations_and_targets(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    chat = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, chat_template="{{ messages[0].content }}")
    rows: dict[str, Any] = {"sw": [{"text": [{"role": "user", "content": BROKEN}]}]}
    with pytest.raises(ValueError, match=r"conversation of language 'sw' \(column 'text'\) holds half"):
        build_chunks(rows, MWandaConfig(sequence_length=8), model, chat)
    pairs = {"sw": [{"text": "the cat", "target": BROKEN}]}
    with pytest.raises(ValueError, match=r"text of language 'sw' \(column 'target'\) holds half"):
        build_chunks(pairs, MWandaConfig(sequence_length=8), make_family("t5"), tokenizer)


def test_so_do_names_of_languages(model: PreTrainedModel) -> None:
    rows = [{"language": code, "input_ids": [9] * 9} for code in ("en", "s\udc00w")]
    with pytest.raises(ValueError, match=r"language of row 1 \(column 'language'\) holds half"):
        build_chunks(rows, MWandaConfig(sequence_length=8), model)
