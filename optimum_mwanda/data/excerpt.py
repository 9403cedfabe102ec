"""As much of a long text as its first tokens need."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARGIN = 64
"""Tokens at the end of a cut text that are not trusted: what follows may change them."""

CHARACTERS = 6
"""Per token, to begin with."""

_SPACE = re.compile(r"\s")


def excerpt(
    tokenizer: "PreTrainedTokenizerBase", text: str, count: int, argument: str = "text", **options: bool
) -> str:
    """The beginning of a text of which the first tokens are those of the whole text.

    The text is cut in front of white space, and again twice as far; where both cuts agree on the tokens, and have some
    to spare, more text does not change them. Where there is no white space, or the tokenizer is not a fast one and may
    do anything with a text, it is the whole text.

    Args:
        tokenizer: Its tokenizer.
        text: The whole text.
        count: How many tokens are needed, special ones in front of the text included.
        argument: As what the tokenizer takes it, `text` or `text_target`.
        **options: With which it does so.
    """
    if not tokenizer.is_fast:
        return text
    before: list[int] | None = None
    end = CHARACTERS * (count + MARGIN)
    while found := _SPACE.search(text, end, 2 * end):
        ids = tokenizer(**{argument: text[: found.start()]}, verbose=False, **options)["input_ids"]
        if before == ids[:count]:
            return text[: found.start()]
        before = ids[:count] if len(ids) >= count + MARGIN else None
        end = 2 * found.start()
    return text
