"""How much calibration data there is in each language."""

import dataclasses
from collections.abc import Iterable

from ..utils import as_percent, markdown_table

MOST_ROWS = 60
"""Most languages in a table that is printed."""


@dataclasses.dataclass(frozen=True)
class LanguageCoverage:
    """How much calibration data there is in one language.

    Attributes:
        language: Code, as the dataset gives it.
        rows: Rows that were read, without empty ones.
        tokens: Tokens that enter the statistics; for an encoder-decoder, those of sources and targets.
        chunks: Chunks of `sequence_length` tokens; for an encoder-decoder, pairs of source and target.
        empty: Rows that were read but are null or empty.
        unknown: How many of the tokens stand for text that the tokenizer does not know; None without a tokenizer.
    """

    language: str
    rows: int
    tokens: int
    chunks: int
    empty: int = 0
    unknown: int | None = None

    @property
    def unknown_share(self) -> float | None:
        """Which share of the tokens is unknown to the tokenizer."""
        return None if self.unknown is None or not self.tokens else self.unknown / self.tokens


def coverage_table(coverage: Iterable[LanguageCoverage]) -> str:
    """The coverage as a Markdown table, with the share of unknown tokens if any is unknown.

    Of very many languages, those with the fewest tokens are in it; the others are summed up.
    """
    every = list(coverage)
    entries, rest = every, ""
    if len(every) > MOST_ROWS:
        by_tokens = sorted(every, key=lambda entry: (entry.tokens, entry.language))
        entries, others = sorted(by_tokens[:MOST_ROWS], key=lambda entry: entry.language), by_tokens[MOST_ROWS:]
        tokens = sum(entry.tokens for entry in others)
        rest = f"\n\n{len(others):,} more languages have {others[0].tokens:,} tokens or more each, {tokens:,} in all."
    has_unknown = any(c.unknown for c in entries)
    table = markdown_table(
        ["language", "rows", "tokens", "chunks", "empty rows", *(["unknown"] if has_unknown else [])],
        [
            [c.language, c.rows, c.tokens, c.chunks, c.empty, *([as_percent(c.unknown_share)] if has_unknown else [])]
            for c in entries
        ],
    )
    return table + rest
