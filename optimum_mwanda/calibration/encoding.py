"""From a row to token ids."""

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from .rows import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class RowEncoder:
    """Turns rows into token ids: those of `input_ids`, or those of the text.

    The tokenizer is looked up when the first text is met, so tokenised rows need none.

    Args:
        tokenizer: A tokenizer, the name or path of one, or None for the model's own.
        model: Model that the ids are for; its name or path locates a tokenizer, its embedding bounds the ids.
        text_column: Column with the text.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase | str | None", model: "PreTrainedModel", text_column: str
    ) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self._text_column = text_column
        self._vocabulary = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer, loaded when it is first asked for.

        Raises:
            ValueError: If none was given and the model's name or path leads to none.
        """
        if self._tokenizer is None or isinstance(self._tokenizer, (str, os.PathLike)):
            self._tokenizer = load_tokenizer(self._tokenizer, self._model)
        return self._tokenizer

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer was given, or has been loaded."""
        return self._tokenizer is not None

    def has_text(self, row: Row) -> bool:
        """Whether the row's ids come from a text."""
        return row.get("input_ids") is None and self._text_column in row

    def text(self, row: Row) -> str:
        """The text of a row that has one."""
        return str(row[self._text_column])

    def encode(self, row: Row, language: str) -> list[int]:
        """Returns the token ids of a row without any padding; an empty list for a null or an empty text.

        Raises:
            TypeError: If the text is not a string.
            ValueError: If an id lies outside the model's vocabulary.
        """
        if self.has_text(row):
            text = row[self._text_column]
            if text is None:
                return []
            if not isinstance(text, str):
                raise TypeError(
                    f"Column {self._text_column!r} holds a {type(text).__name__} for language {language!r}: "
                    "texts are strings, and token ids go into a column 'input_ids'."
                )
            if not text.strip():
                return []
            ids = self.tokenizer(text, verbose=False)["input_ids"]
        else:
            ids = row.get("input_ids")
            if ids is None:
                return []
            mask = row.get("attention_mask")
            if mask is not None:
                if len(mask) != len(ids):
                    raise ValueError(
                        f"A row of language {language!r} has {len(ids)} input_ids and {len(mask)} entries in "
                        "attention_mask: both must have one entry per token."
                    )
                ids = [token for token, kept in zip(ids, mask, strict=True) if kept]
        ids = np.asarray(ids).reshape(-1)
        if ids.size and ids.dtype.kind not in "iu":
            raise TypeError(f"The input_ids of language {language!r} are {ids.dtype}: token ids are whole numbers.")
        if ids.size and not 0 <= ids.min() <= ids.max() < self._vocabulary:
            wrong = ids[(ids < 0) | (ids >= self._vocabulary)][0]
            raise ValueError(
                f"Token id {wrong} of language {language!r} lies outside the model's vocabulary of {self._vocabulary}: "
                "the dataset was tokenised for, or the tokenizer belongs to, another model."
            )
        return [int(token) for token in ids]


def load_tokenizer(name: "str | os.PathLike[str] | None", model: "PreTrainedModel") -> "PreTrainedTokenizerBase":
    """Loads a tokenizer by name, or the one saved beside the model."""
    from transformers import AutoTokenizer

    source = os.fspath(name) if name is not None else (model.name_or_path or "")
    if not source:
        raise ValueError("The dataset holds text and the model has no name or path: pass tokenizer=.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        # Of a folder without tokenizer files some families make a tokenizer that knows special tokens only.
        if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
            raise ValueError("it has no vocabulary")
    except Exception as error:
        raise ValueError(
            f"No tokenizer could be loaded from {source!r} ({type(error).__name__}: {error}). The dataset holds text: "
            "pass tokenizer= (a tokenizer, or its name or path), or a dataset with 'input_ids'."
        ) from error
    return tokenizer


def resolve_sequence_length(requested: int | None, model: Any, default: int = 512) -> int:
    """Checks a sequence length against the model's positions, or picks `default` within them.

    Raises:
        ValueError: If `requested` exceeds the model's positions.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limit = positions if isinstance(positions, int) and positions > 0 else None
    if requested is None:
        return min(default, limit or default)
    if limit is not None and requested > limit:
        raise ValueError(f"sequence_length={requested} exceeds the model's {limit} positions: give at most {limit}.")
    return requested
