"""Special tokens that matter to what a model reads: those before a text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBES = ("a", "1", ".")  # a tokenizer may leave out what it does not know


def prefix_of(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """The tokens that a tokenizer writes before a text, found by asking it for a text with and without them.

    `bos_token_id` does not tell: some tokenizers have such a token and never write it, others write another one.
    """
    for probe in _PROBES:
        bare = _ids(tokenizer, probe, special=False)
        if not bare:
            continue
        whole = _ids(tokenizer, probe, special=True)
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return tuple(whole[:start])
    return ()


def begins_with(ids: Sequence[int], prefix: Sequence[int]) -> bool:
    """Whether ids begin with these."""
    return list(ids[: len(prefix)]) == list(prefix)


def _ids(tokenizer: "PreTrainedTokenizerBase", text: str, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
