"""Special tokens that matter to what a model reads: those before a text, and the one for unknown text."""

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .excerpt import excerpt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

MANY_UNKNOWN = 0.05
"""Share of unknown tokens above which a language is warned of."""

_NAMED = 8
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


def unknown_id(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The token that stands for text which the tokenizer does not know; None if there is none.

    Some tokenizers give this name to a token that ends a text, and never write it for anything unknown.
    """
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id)
    return None if tokenizer.unk_token_id in ends else tokenizer.unk_token_id


def spelled(
    tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], text: str, argument: str = "text", **options: bool
) -> str:
    """What the first tokens of a text spell, special tokens left out; of unknown ones what they stand for.

    Args:
        tokenizer: Their tokenizer.
        ids: The tokens.
        text: The whole text.
        argument: As what the tokenizer takes it, `text` or `text_target`.
        **options: With which it does so.
    """
    if not tokenizer.is_fast or unknown_id(tokenizer) not in ids:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))
    text = excerpt(tokenizer, text, len(ids), argument, **options)
    encoded = tokenizer(**{argument: text}, return_offsets_mapping=True, verbose=False, **options)
    return text[: max(end for _, end in encoded["offset_mapping"][: len(ids)])]


def warn_of_unknown(shares: Iterable[tuple[str, float | None]], consequence: str) -> None:
    """Warns of languages of which the tokenizer does not know more than a little.

    Args:
        shares: Languages with the share of their tokens that is unknown; None where that cannot be told.
        consequence: What such a language hardly is.
    """
    found = [(language, share) for language, share in shares if share is not None and share > MANY_UNKNOWN]
    for language, share in found[:_NAMED]:
        logger.warning(
            "%.0f %% of the tokens of language %r are unknown to the tokenizer: it is hardly %s.",
            100 * share,
            language,
            consequence,
        )
    if len(found) > _NAMED:
        logger.warning("So it is with %d more languages: see their unknown_share.", len(found) - _NAMED)


def begins_with(ids: Sequence[int], prefix: Sequence[int]) -> bool:
    """Whether ids begin with these."""
    return list(ids[: len(prefix)]) == list(prefix)


def _ids(tokenizer: "PreTrainedTokenizerBase", text: str, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
