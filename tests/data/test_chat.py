from collections.abc import Callable
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from optimum_mwanda import MWandaConfig
from optimum_mwanda.data.chat import without_special_tokens
from optimum_mwanda.data.chunks import build_chunks
from optimum_mwanda.data.encoding import RowEncoder

# Writes `<s>` by itself, as the tokenizer does before every plain text.
TEMPLATE = """{{ bos_token }}{% for message in messages -%}
{% if message.role not in ['user', 'assistant'] %}{{ raise_exception('unknown role: ' + message.role) }}{% endif -%}
{{ message.role + ' ' + message.content + '<end>' }}{% endfor %}"""

MESSAGES = [{"role": "user", "content": "the cat sat"}, {"role": "assistant", "content": "sur le lit"}]


@pytest.fixture(scope="module")
def chat_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, unk_token="<unk>", bos_token="<s>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture
def encoder(model: PreTrainedModel, chat_tokenizer: PreTrainedTokenizerBase) -> RowEncoder:
    return RowEncoder(chat_tokenizer, model, "messages")


def test_conversation_is_tokenised_as_the_chat_template_writes_it(
    encoder: RowEncoder, chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    ids = encoder.encode({"messages": MESSAGES}, "en")
    assert ids == dict(chat_tokenizer.apply_chat_template(MESSAGES, tokenize=True, return_dict=True))["input_ids"]
    assert ids[0] == chat_tokenizer.bos_token_id
    assert ids[0] not in ids[1:]
    assert ids.count(chat_tokenizer.convert_tokens_to_ids("<end>")) == len(MESSAGES)


def test_text_of_a_conversation_is_the_rendering_without_special_tokens(encoder: RowEncoder) -> None:
    assert encoder.has_text({"messages": MESSAGES})
    assert encoder.text({"messages": MESSAGES}) == "user the cat satassistant sur le lit"


def test_special_token_that_begins_with_another_is_removed_whole(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token="<s>eos")
    assert without_special_tokens(tokenizer, "<s>the cat<s>eos") == "the cat"


def test_plain_text_is_not_changed_by_a_chat_template(
    encoder: RowEncoder, chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    row = {"messages": "the cat <end>"}
    assert encoder.encode(row, "en") == chat_tokenizer("the cat <end>")["input_ids"]
    assert encoder.text(row) == "the cat <end>"


CONTAINERS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "list": list,
    "dict of rows": lambda rows: {"en": rows},
    "dict of conversations": lambda rows: {"en": [row["messages"] for row in rows]},
    "Dataset": Dataset.from_list,
    "torch Dataset": lambda rows: Dataset.from_list(rows).with_format("torch"),
    "IterableDataset": lambda rows: Dataset.from_list(rows).to_iterable_dataset(),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_may_hold_conversations(
    model: PreTrainedModel, chat_tokenizer: PreTrainedTokenizerBase, container: str
) -> None:
    rows = [{"language": "en", "messages": MESSAGES}] * 4
    config = MWandaConfig(text_column="messages", sequence_length=8, bos="none")
    chunks = build_chunks(CONTAINERS[container](rows), config, model, chat_tokenizer)
    ids = RowEncoder(chat_tokenizer, model, "messages").encode(rows[0], "en")
    (packed,) = chunks.chunks["en"]
    assert chunks.coverage[0].rows == 4
    # A row gives its first chunk before its rest, unless it comes from a stream.
    whole = ids * 4 if container == "IterableDataset" else ids[:8] * 4 + ids[8:] * 4
    assert packed["input_ids"].flatten().tolist() == whole[: packed["input_ids"].numel()]


@pytest.mark.parametrize("blank", [[], [{"role": "user", "content": " "}], [{"role": "user", "content": None}]])
def test_conversation_in_which_nothing_is_said_has_no_tokens(encoder: RowEncoder, blank: Any) -> None:
    assert encoder.encode({"messages": blank}, "en") == []


def test_tokenizer_without_chat_template_is_refused(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="Column 'messages' holds conversations, and the tokenizer has no chat templ"):
        RowEncoder(tokenizer, model, "messages").encode({"messages": MESSAGES}, "en")


@pytest.mark.parametrize("message", [{"role": "judge", "content": "the"}, {"role": "user", "content": 5}])
def test_messages_that_the_template_does_not_accept_are_refused(encoder: RowEncoder, message: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="chat template does not accept a conversation of column 'messages': "):
        encoder.encode({"messages": [message]}, "en")


@pytest.mark.parametrize("value", [["the cat"], [{"from": "human", "value": "the cat"}], {"role": "user"}, 5])
def test_value_that_is_neither_text_nor_conversation_is_refused(encoder: RowEncoder, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"Column 'messages' holds a {type(value).__name__} .*'role' and 'content'"):
        encoder.encode({"messages": value}, "en")
