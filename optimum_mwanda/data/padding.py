"""Padding in tokenised rows that come without an attention mask."""

import logging
from collections.abc import Collection

import numpy as np

logger = logging.getLogger(__name__)

MIN_RUN = 2
"""How often the padding token must stand at an end of a row to be padding."""


class Padding:
    """Finds padding by its token: two or more of it at an end of a row.

    A token that also ends texts tells nothing by itself. Rows that all have one length, at least half of them with such
    a run, are refused then; others stay as they are.

    Args:
        column: What the rows hold, for messages.
        token: Padding token; None if there is none.
        ends: Tokens that end or begin a text; without a padding token, one of these may have been used.
    """

    def __init__(self, column: str, token: int | None, ends: Collection[int]) -> None:
        self._column = column
        self._is_certain = token is not None and token not in ends
        self._token = token if token is not None else next(iter(ends), None)
        self._rows = 0
        self._padded = 0
        self._lengths: set[int] = set()

    def kept(self, ids: np.ndarray) -> np.ndarray:
        """Which tokens of a row are no padding, `(tokens,)`."""
        others = np.flatnonzero(ids != self._token)
        # Of padding alone all stands at the end.
        first, last = (others[0], others[-1] + 1) if others.size else (0, 0)
        start, end = (first if first >= MIN_RUN else 0), (last if ids.size - last >= MIN_RUN else ids.size)
        self._rows += 1
        self._lengths.add(ids.size)
        self._padded += int(start > 0 or end < ids.size)
        kept = np.ones(ids.size, dtype=bool)
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
        found = f"{self._padded} of {self._rows} tokenised rows begin or end in runs of token {self._token}"
        if self._is_certain:
            logger.warning(
                "%s: the %s have no attention mask, and these runs are left out as padding. Give an 'attention_mask' "
                "to say what is padding.",
                found,
                self._column,
            )
        elif self._rows > 1 and len(self._lengths) == 1 and 2 * self._padded >= self._rows:
            raise ValueError(
                f"{found}, all rows have {self._lengths.pop()} {self._column}, and there is no attention mask: this "
                "looks like padding, but the token also ends texts. Give a column 'attention_mask' with 1 for tokens "
                "and 0 for padding, as tokenizers write it, or rows without padding."
            )
