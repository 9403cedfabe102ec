"""Padding in tokenised rows that come without an attention mask."""

import logging
from collections import Counter
from collections.abc import Collection

import numpy as np

logger = logging.getLogger(__name__)

MIN_RUN = 2
"""How often the padding token must stand at an end of a row to be padding."""


class Padding:
    """Finds padding by its token: two or more of it at an end of a row.

    If it is not known which token that is, or if the token also ends texts, a run tells nothing by itself. Rows that
    all have one length, at least two and half of them with such a run of one token, are refused then; others stay as
    they are.

    Args:
        column: What the rows hold, for messages.
        token: Padding token; None if it is not known.
        ends: Tokens that end or begin a text.
    """

    def __init__(self, column: str, token: int | None, ends: Collection[int]) -> None:
        self._column = column
        self._is_certain = token is not None and token not in ends
        self._token = token
        self._rows = 0
        self._padded: Counter[int] = Counter()
        self._lengths: set[int] = set()

    def kept(self, ids: np.ndarray) -> np.ndarray:
        """Which tokens of a row are no padding, `(tokens,)`."""
        self._rows += 1
        self._lengths.add(ids.size)
        kept = np.ones(ids.size, dtype=bool)
        for token in _doubled_at_ends(ids) if self._token is None else (self._token,):
            start, end = _between_runs(ids, token)
            if start > 0 or end < ids.size:
                self._padded[token] += 1
                if self._is_certain:
                    kept[:start] = kept[end:] = False
        return kept

    def check(self) -> None:
        """Says what was found, once all rows were seen.

        Raises:
            ValueError: If the rows look padded, and it cannot be told what of them is padding.
        """
        if not self._padded:
            return
        ((token, padded),) = self._padded.most_common(1)
        found = f"{padded} of {self._rows} tokenised rows begin or end in runs of token {token}"
        if self._is_certain:
            logger.warning(
                "%s: the %s have no attention mask, and these runs are left out as padding. Give an 'attention_mask' "
                "to say what is padding.",
                found,
                self._column,
            )
        elif padded > 1 and len(self._lengths) == 1 and 2 * padded >= self._rows:
            but = "neither model nor tokenizer names a padding token" if self._token is None else "it also ends texts"
            raise ValueError(
                f"{found}, all rows have {self._lengths.pop()} {self._column}, and there is no attention mask: this "
                f"looks like padding, but {but}. Give a column 'attention_mask' with 1 for tokens and 0 for padding, "
                "as tokenizers write it, or rows without padding."
            )


def _doubled_at_ends(ids: np.ndarray) -> set[int]:
    """The tokens that stand twice at the beginning or at the end of a row."""
    ends = (ids[:MIN_RUN], ids[-MIN_RUN:])
    return {int(end[0]) for end in ends if end.size == MIN_RUN and (end == end[0]).all()}


def _between_runs(ids: np.ndarray, token: int) -> tuple[int, int]:
    """Where a row begins and ends without the runs of a token at its ends."""
    others = np.flatnonzero(ids != token)
    # Of padding alone all stands at the end.
    first, last = (int(others[0]), int(others[-1]) + 1) if others.size else (0, 0)
    return (first if first >= MIN_RUN else 0), (last if ids.size - last >= MIN_RUN else ids.size)
