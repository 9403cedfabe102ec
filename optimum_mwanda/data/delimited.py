"""Rows of CSV and TSV files, in which every field is the text that it is.

Common readers take `nan` and `NA` for missing values, `true` for a boolean, and a stray quote for the beginning of a
field that goes on over many lines.
"""

import csv
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import IO

import fsspec

logger = logging.getLogger(__name__)

_NAMED = 10
_DELIMITERS = re.compile("[;|,\t]")
_LONGEST_FIELD = 2**31 - 1


class UnreadableRows(ValueError):
    """A file whose rows cannot be told apart."""


def columns_of(files: Sequence[str], delimiter: str) -> list[str]:
    """The columns that all files have, in any order.

    Raises:
        UnreadableRows: If a header names a column twice or has another delimiter, or headers differ.
    """
    headers = {file: _header(file, delimiter) for file in files}
    found = [header for header in headers.values() if header]
    for file, header in headers.items():
        if header and sorted(header) != sorted(found[0]):
            raise UnreadableRows(
                f"{_name(file)} has the columns {header}, and another file {found[0]}: read them apart."
            )
        if len(header) == 1 and (other := _DELIMITERS.search(header[0])):
            raise UnreadableRows(
                f"The first line of {_name(file)} has {other[0]!r} between its fields: fields of a CSV file are "
                "separated by commas, and those of a TSV file by tabs."
            )
        if len({*header}) < len(header):
            raise UnreadableRows(f"{_name(file)} names a column twice in its first line: {header}.")
    return found[0] if found else []


def rows_of(files: Sequence[str], delimiter: str) -> Iterator[dict[str, str]]:
    """Yields the rows behind the headers. Rows with another number of fields are left out, with a warning.

    In a file with tabs every line is a row: a quote that does not enclose a whole field is a character like others.

    Args:
        files: Paths or addresses, perhaps compressed.
        delimiter: Between fields.

    Raises:
        UnreadableRows: If a quote does not enclose a field, or a file is not UTF-8 text.
    """
    for file in files:
        wrong, count = [], 0
        with _opened(file) as lines:
            records = _records(lines, file, delimiter)
            _, header = next(records, (0, []))
            for count, (number, fields) in enumerate(records, start=1):  # noqa: B007
                if len(fields) == len(header):
                    yield dict(zip(header, fields, strict=True))
                else:
                    wrong.append(number)
        if wrong:
            logger.warning(
                "%s: %d of %d rows do not have the %d fields of the first line and are left out: line%s %s%s.",
                _name(file),
                len(wrong),
                count,
                len(header),
                "s" if len(wrong) > 1 else "",
                ", ".join(map(str, wrong[:_NAMED])),
                " …" if len(wrong) > _NAMED else "",
            )


def _header(file: str, delimiter: str) -> list[str]:
    with _opened(file) as lines:
        return next(_records(lines, file, delimiter), (0, []))[1]


def _opened(file: str) -> IO[str]:
    opened: IO[str] = fsspec.open(file, "rt", encoding="utf-8-sig", newline="", compression="infer").open()
    return opened


def _records(lines: IO[str], file: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The number of the line at which a row begins, and its fields; blank lines are no rows."""
    before = csv.field_size_limit(_LONGEST_FIELD)
    split = _lines if delimiter == "\t" else _quoted
    try:
        yield from ((number, fields) for number, fields in split(lines, file, delimiter) if fields)
    except UnicodeDecodeError as error:
        raise UnreadableRows(f"{_name(file)} is not UTF-8 text: {error}") from error
    finally:
        csv.field_size_limit(before)


def _quoted(lines: IO[str], file: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader, start = csv.reader(lines, delimiter=delimiter, strict=True), 1
    try:
        for fields in reader:
            yield start, fields
            start = reader.line_num + 1
    except csv.Error as error:
        raise UnreadableRows(
            f"{_name(file)}: the row at line {start} has a quote that does not enclose a field ({error}): put the "
            "field in quotes and write each quote within it twice, or give the file as JSONL."
        ) from error


def _lines(lines: IO[str], file: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(lines, start=1):
        line = line.rstrip("\r\n")
        if not line:
            continue
        try:
            (fields,) = csv.reader([line], delimiter=delimiter, strict=True)
        except csv.Error:
            fields = line.split(delimiter)
        yield number, fields


def _name(file: str) -> str:
    return PurePosixPath(file.replace("\\", "/")).name
