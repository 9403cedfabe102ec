"""From a row to token ids."""

import copy
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ..configuration import MWandaConfig
from ..modeling.architecture import is_masked
from ..modeling.positions import max_positions
from .chat import is_blank, is_conversation, render, without_special_tokens
from .excerpt import excerpt
from .padding import Padding
from .rows import Row
from .special_tokens import prefix_of, spelled, unknown_id
from .surrogates import check_whole
from .tokenised import check_vocabulary, tokenised_inputs, tokenised_labels
from .tokenizer_loading import load_tokenizer, of_processor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class RowEncoder:
    """Turns rows into token ids: those in the row, or those of its text or conversation.

    The tokenizer is loaded at the first text, so tokenised rows need none.

    Args:
        tokenizer: A tokenizer, its name or path, or None for the model's own.
        model: Model that the ids are for; its name or path locates a tokenizer, its embeddings bound the ids.
        text_column: Column with the text or the conversation; for an encoder-decoder, the source.
        target_column: Column with the target, for an encoder-decoder.
        bos: As in `MWandaConfig`.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase | str | None",
        model: "PreTrainedModel",
        text_column: str,
        target_column: str = MWandaConfig.target_column,
        bos: str = MWandaConfig.bos,
    ) -> None:
        tokenizer = of_processor(tokenizer)
        # A processor of pictures or sound can be called as well.
        is_tokenizer = callable(tokenizer) and hasattr(tokenizer, "convert_ids_to_tokens")
        if not (tokenizer is None or isinstance(tokenizer, (str, os.PathLike)) or is_tokenizer):
            raise TypeError(
                f"tokenizer is a {type(tokenizer).__name__}: pass a tokenizer, its name or path, or None for the one "
                "beside the model."
            )
        self._tokenizer = tokenizer
        # Of the model only what is small: an encoder may be copied, and sent to other processes.
        self._config = model.config
        self._beside = getattr(model, "name_or_path", None) or ""
        self._text_column = text_column
        self._target_column = target_column
        self._bos = bos
        self._prefix: tuple[int, ...] | None = None
        self._padding: dict[str, Padding] = {}
        self._positions = max_positions(model)
        self._vocabulary = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]
        takes_labels = getattr(model.config, "is_encoder_decoder", False)
        head = model.get_output_embeddings() if takes_labels else None  # type: ignore[no-untyped-call]
        self._labels = self._vocabulary if head is None else int(head.weight.shape[0])

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer, loaded at the first use.

        Raises:
            ValueError: If none was given, and there is none at the model's name or path.
        """
        if self._tokenizer is None or isinstance(self._tokenizer, (str, os.PathLike)):
            self._tokenizer = load_tokenizer(self._tokenizer, self._beside)
        tokenizer: PreTrainedTokenizerBase = self._tokenizer
        return tokenizer

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer was given or has been loaded."""
        return self._tokenizer is not None

    @property
    def prefix(self) -> tuple[int, ...]:
        """What the tokenizer writes before a text, to begin every piece of a decoder's text with.

        Nothing for encoders, to which a text is a row with a beginning and an end, nor if `bos` says so.

        Raises:
            ValueError: If there is no tokenizer.
        """
        if self._prefix is None:
            is_encoder = self._config.is_encoder_decoder or is_masked(self._config)
            is_wanted = self._bos == "auto" and not is_encoder
            self._prefix = prefix_of(self.tokenizer) if is_wanted else ()
        return self._prefix

    @property
    def unknown_id(self) -> int | None:
        """The token that stands for text which the tokenizer does not know, if there is one."""
        return unknown_id(self.tokenizer) if self.has_tokenizer else None

    def unknown(self, ids: Iterable[ArrayLike]) -> int | None:
        """How many of some token ids stand for text that the tokenizer does not know; None without a tokenizer."""
        if not self.has_tokenizer:
            return None
        unknown = self.unknown_id
        return 0 if unknown is None else sum(int(np.count_nonzero(np.asarray(part) == unknown)) for part in ids)

    def has_text(self, row: Row) -> bool:
        """Whether the row's ids come from a text or a conversation."""
        return row.get("input_ids") is None and self._text_column in row

    def text(self, row: Row) -> str:
        """The text of a row that has one: what its tokens spell, without special tokens.

        A conversation is rendered by the chat template, with everything that it adds except special tokens.
        """
        content = row[self._text_column]
        if isinstance(content, str):
            return content
        return without_special_tokens(self.tokenizer, render(self.tokenizer, content, self._text_column))

    def beginning(self, row: Row, ids: Sequence[int]) -> str:
        """What the first tokens of a row that has a text spell, special tokens left out."""
        content = row[self._text_column]
        if isinstance(content, str):
            return spelled(self.tokenizer, ids, content)
        text = spelled(
            self.tokenizer, ids, render(self.tokenizer, content, self._text_column), add_special_tokens=False
        )
        return without_special_tokens(self.tokenizer, text)

    def encode(self, row: Row, language: str, count: int | None = None) -> list[int]:
        """Returns the token ids of a row without padding; an empty list for a null or empty text.

        Args:
            row: The row.
            language: Its language, for messages.
            count: How many are enough: no more is read of a text. None: all.

        Raises:
            TypeError: If the text is neither a string nor a conversation, or ids are no whole numbers.
            ValueError: If an id lies outside the model's vocabulary, the attention mask does not fit the ids, a text
                holds half of a character, or a conversation cannot be rendered.
        """
        return self.inputs(row, language, count).get("input_ids", [])

    def inputs(self, row: Row, language: str, count: int | None = None) -> dict[str, list[int]]:
        """Returns `input_ids` and, if the row brings its own, `position_ids`; nothing for a null or an empty text.

        Args:
            row: The row.
            language: Its language, for messages.
            count: As `encode`.

        Raises:
            TypeError: As `encode`.
            ValueError: As `encode`, or if the model does not have a position.
        """
        if self.has_text(row):
            ids = self._text_ids(row[self._text_column], language, count)
            check_vocabulary(ids, self._vocabulary, language)
            return {"input_ids": ids} if ids else {}
        if row.get("input_ids") is None:
            return {}
        inputs = tokenised_inputs(row, language, self._vocabulary, self._positions, self._padding_of("input_ids"))
        return {name: values[:count] for name, values in inputs.items()} if inputs["input_ids"] else {}

    def pair(self, row: Row, language: str, length: int) -> dict[str, list[int]]:
        """Returns `input_ids` and `labels` for an encoder-decoder; nothing if either side is null or empty.

        Args:
            row: Holds a source and a target as texts, or `input_ids` and `labels`.
            language: Its language, for messages.
            length: Most tokens per side; the rest is cut off.

        Raises:
            TypeError: If a text is not a string, or ids are not whole numbers.
            ValueError: If an id lies outside the model's vocabulary, the attention mask does not fit the ids, or the
                row holds `position_ids`.
        """
        if row.get("input_ids") is not None and row.get("labels") is not None:
            if row.get("position_ids") is not None:
                raise ValueError(
                    "An encoder-decoder counts its positions itself, and every row is its own sequence: leave out "
                    "the column 'position_ids'."
                )
            padding = self._padding_of("input_ids")
            source = tokenised_inputs(row, language, self._vocabulary, self._positions, padding)["input_ids"]
            target = tokenised_labels(row, language, self._labels, self._padding_of("labels"))
        else:
            texts = [self._checked_text(row, column, language) for column in (self._text_column, self._target_column)]
            if not all(texts):
                return {}
            if self.tokenizer.truncation_side == "right":
                texts = [
                    excerpt(self.tokenizer, text, length, argument)
                    for argument, text in zip(("text", "text_target"), texts, strict=True)
                ]
            encoded = self.tokenizer(texts[0], text_target=texts[1], truncation=True, max_length=length)
            source, target = encoded["input_ids"], encoded["labels"]
            check_vocabulary(source, self._vocabulary, language)
            check_vocabulary(target, self._labels, language)
        return {"input_ids": source[:length], "labels": target[:length]} if source and target else {}

    def again(self) -> "RowEncoder":
        """Encodes rows that were encoded before: what padding is found in them is not counted a second time."""
        twin = copy.copy(self)
        twin._padding = copy.deepcopy(self._padding)
        return twin

    def check_padding(self) -> None:
        """Says what padding was found in rows without an attention mask, once all rows are encoded.

        Raises:
            ValueError: If there seems to be some, and it cannot be told from the ends of texts.
        """
        for padding in self._padding.values():
            padding.check()

    def _padding_of(self, column: str) -> Padding:
        if column not in self._padding:
            known: list[Any] = [*([self.tokenizer] if self.has_tokenizer else []), self._config.get_text_config()]
            token = next((each.pad_token_id for each in known if getattr(each, "pad_token_id", None) is not None), None)
            named = [getattr(each, name, None) for each in known for name in ("eos_token_id", "bos_token_id")]
            ends = [end for ids in named if ids is not None for end in (ids if isinstance(ids, list) else [ids])]
            self._padding[column] = Padding(column, token, ends)
        return self._padding[column]

    def _text_ids(self, content: Any, language: str, count: int | None) -> list[int]:
        if content is None or (isinstance(content, str) and not content.strip()):
            return []
        if isinstance(content, str):
            check_whole(content, f"A text of language {language!r} (column {self._text_column!r})")
            return self._first_ids(content, count, add_special_tokens=True)
        if not is_conversation(content):
            raise TypeError(
                f"Column {self._text_column!r} holds a {type(content).__name__} for language {language!r}: texts are "
                "strings, conversations are lists of messages with 'role' and 'content', and token ids go into the "
                "column 'input_ids'."
            )
        if is_blank(content):
            return []
        # The template has already written the special tokens.
        text = render(self.tokenizer, content, self._text_column)
        check_whole(text, f"A conversation of language {language!r} (column {self._text_column!r})")
        return self._first_ids(text, count, add_special_tokens=False)

    def _first_ids(self, text: str, count: int | None, add_special_tokens: bool) -> list[int]:
        tokenizer = self.tokenizer
        if count is not None:
            text = excerpt(tokenizer, text, count, add_special_tokens=add_special_tokens)
        return list(tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"][:count])

    def _checked_text(self, row: Row, column: str, language: str) -> str:
        text = row.get(column)
        if text is None:
            return ""
        if not isinstance(text, str):
            raise TypeError(
                f"Column {column!r} holds a {type(text).__name__} for language {language!r}: sources and targets are "
                "strings, and token ids go into the columns 'input_ids' and 'labels'."
            )
        check_whole(text, f"A text of language {language!r} (column {column!r})")
        return text if text.strip() else ""
