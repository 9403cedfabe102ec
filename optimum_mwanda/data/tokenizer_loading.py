"""Loading the tokenizer of a model."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def of_processor(tokenizer: Any) -> Any:
    """The tokenizer in a processor, which takes pictures or sound too; anything else unchanged."""
    from transformers import ProcessorMixin

    return getattr(tokenizer, "tokenizer", tokenizer) if isinstance(tokenizer, ProcessorMixin) else tokenizer


def load_tokenizer(name: "str | os.PathLike[str] | None", beside: str) -> "PreTrainedTokenizerBase":
    """Loads a tokenizer by name, or the one saved beside the model.

    Args:
        name: Name or path of the tokenizer; None for the model's own.
        beside: Name or path of the model; empty if it has none.

    Raises:
        ValueError: If there is none.
    """
    source = os.fspath(name) if name is not None else beside
    if not source:
        raise ValueError("Text needs a tokenizer, and the model has no name or path: pass tokenizer=.")
    try:
        return read_tokenizer(source)
    except Exception as error:
        raise ValueError(
            f"No tokenizer could be loaded from {source!r} ({type(error).__name__}: {error}). Text needs one: pass "
            "tokenizer= (a tokenizer, or its name or path). A dataset with 'input_ids' needs none."
        ) from error


def read_tokenizer(source: str, **options: Any) -> "PreTrainedTokenizerBase":
    """Loads a tokenizer that can tell texts apart.

    Args:
        source: Folder or repository.
        **options: Passed to `AutoTokenizer.from_pretrained`.

    Raises:
        Exception: As `from_pretrained`; a ValueError if the tokenizer has only special tokens.
    """
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, **options)
    # From a folder without tokenizer files, some families make a tokenizer that knows only special tokens.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise ValueError("it has no vocabulary")
    return tokenizer
