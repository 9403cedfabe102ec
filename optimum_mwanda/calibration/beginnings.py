"""What texts begin with that the model goes on with, in each language."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import dropwhile, islice, takewhile
from typing import Any

from datasets import Dataset, IterableDataset, IterableDatasetDict

from ..data.by_language import split_by_language
from ..data.columns import Columns
from ..data.encoding import RowEncoder
from ..data.excerpt import excerpt
from ..data.rows import Row
from ..data.special_tokens import begins_with, prefix_of


class BeginningError(ValueError):
    """A beginning that cannot be read, or none where there has to be one."""


def split_beginnings(beginnings: Any, language_column: str, text_column: str) -> dict[str, Any]:
    """Takes beginnings apart into languages.

    Args:
        beginnings: `datasets.Dataset`, a list of rows, or a dict of language to texts, rows, a dataset or a stream.
        language_column: Its column with the language.
        text_column: Its column with the text.

    Returns:
        Language, in sorted order, to its rows.

    Raises:
        TypeError: If they are not a dataset.
        ValueError: If there are none, a column is missing, or they are one stream of all languages.
    """
    if isinstance(beginnings, IterableDataset):
        raise ValueError(
            "beginnings is a stream, whose languages are known only at its end: give a dict of language to stream."
        )
    if isinstance(beginnings, (str, bytes)) or not isinstance(beginnings, (Dataset, Mapping, Sequence)):
        raise TypeError(
            f"beginnings is a {type(beginnings).__name__}: give a dict of language to a list of texts, a list of rows, "
            "or a datasets.Dataset."
        )
    if not isinstance(beginnings, IterableDatasetDict) and not len(beginnings):
        raise ValueError("beginnings is empty: give at least one text of a language, or leave it out.")
    columns = Columns(language_column, text_column)
    parts = split_by_language(beginnings, columns)
    for language, part in parts.items():
        columns.check(dict.fromkeys(part.column_names or (text_column,)), f" in language {language!r}", language=False)
    return dict(parts)


def openings_of(
    rows: Iterable[Row], language: str, encoder: RowEncoder, text_column: str, length: int, count: int
) -> list[list[int]]:
    """The tokens that the first texts of a language begin with, without those that a tokenizer writes around a text.

    An opening ends before a word that the tokenizer does not know.

    Args:
        rows: Rows of the language.
        language: Its name, for messages.
        encoder: Reads them.
        text_column: Where it finds their text.
        length: Most tokens of an opening.
        count: How many openings are enough.

    Raises:
        BeginningError: If there are none, or one cannot be read.
        TypeError: If a text is not a string or a conversation.
    """
    tokenizer = encoder.tokenizer
    special, prefix = {*tokenizer.all_special_ids}, prefix_of(tokenizer)

    def opening(row: Row) -> list[int]:
        if not encoder.has_text(row):
            ids = encoder.encode(row, language)
            ids = ids[len(prefix) :] if begins_with(ids, prefix) else ids
        elif encoder.encode(row, language, length):  # which checks the text
            text = excerpt(tokenizer, encoder.text(row), length, add_special_tokens=False)
            ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        else:
            ids = []
        known = dropwhile(special.__contains__, ids)
        return [*islice(takewhile(lambda token: token not in special, known), length)]

    try:
        openings = [*islice(filter(None, map(opening, rows)), count)]
    except ValueError as error:
        raise BeginningError(str(error)) from error
    if openings:
        return openings
    raise BeginningError(
        f"Among the beginnings there is no text for language {language!r}, or none that the tokenizer knows: give at "
        "least one, or leave the language out."
    )
