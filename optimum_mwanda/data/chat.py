"""Conversations: lists of messages that a chat template turns into text."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Conversation = Sequence[Mapping[str, Any]]


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages, each a dict with `role` and `content`."""
    return isinstance(value, (list, tuple)) and all(
        isinstance(message, Mapping) and {"role", "content"} <= message.keys() for message in value
    )


def is_blank(conversation: Conversation) -> bool:
    """Whether no message says anything."""
    contents = (message["content"] for message in conversation)
    return not any(content.strip() if isinstance(content, str) else content for content in contents)


def render(tokenizer: "PreTrainedTokenizerBase", conversation: Conversation, column: str) -> str:
    """The conversation as the tokenizer's chat template writes it, its special tokens included.

    Args:
        tokenizer: Tokenizer with a chat template.
        conversation: Messages in their order.
        column: Where the conversation comes from, for messages.

    Raises:
        ValueError: If there is no chat template, or it does not accept the messages.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f"Column {column!r} holds conversations, and the tokenizer has no chat template: pass a tokenizer with "
            "one, set tokenizer.chat_template, or give a column of texts."
        )
    try:
        return str(tokenizer.apply_chat_template([dict(message) for message in conversation], tokenize=False))
    except (TemplateError, TypeError, ValueError) as error:
        raise ValueError(
            f"The tokenizer's chat template does not accept a conversation of column {column!r}: {error}"
        ) from error


def without_special_tokens(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    """Removes the special tokens that a chat template wrote into a text."""
    # One special token may begin with another, so the longest goes first.
    for token in sorted(tokenizer.all_special_tokens, key=len, reverse=True):
        text = text.replace(token, "")
    return text
