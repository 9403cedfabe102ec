"""Lines of text files that need not fit into memory."""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, overload

from .errors import DataError
from .text_files import opened

_MARKED = 64
"""Of so many line feeds in a file, the place of one is kept."""


class Lines(Sequence[str]):
    """The lines of files, in which any line can be looked up. What is kept in memory are some of their places.

    Args:
        paths: The files, not compressed. They are read once from end to end, and again where a line is looked up.

    Raises:
        DataError: If a file cannot be read or is not UTF-8 text.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = [*paths]
        self._lines, self._files, self._places = array("q"), array("q"), array("q")
        self._count = 0
        for number, path in enumerate(self._paths):
            place = 0
            with opened(path) as file:
                for index, piece in enumerate(file):
                    if index % _MARKED == 0:
                        self._lines.append(self._count)
                        self._files.append(number)
                        self._places.append(place)
                    self._count += len(_split(piece, path, place == 0))
                    place += len(piece)

    def __len__(self) -> int:
        """How many lines there are."""
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        """A line, which is read now."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(self._count))]
        index = range(self._count)[index]
        mark = bisect_right(self._lines, index) - 1
        path, place = self._paths[self._files[mark]], self._places[mark]
        with opened(path) as file:
            file.seek(place)
            return next(islice(_lines(file, path, place == 0), index - self._lines[mark], None))

    def __iter__(self) -> Iterator[str]:
        """All lines, read one after the other."""
        return iter(LineStream(self._paths))


class LineStream(Iterable[str]):
    """The lines of files in their order; what nobody asks for is not read.

    Args:
        paths: The files, perhaps compressed.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = [*paths]

    def __iter__(self) -> Iterator[str]:
        """Reads the files anew.

        Raises:
            DataError: If a file cannot be read or is not UTF-8 text.
        """
        for path in self._paths:
            with opened(path) as file:
                yield from _lines(file, path, True)


def _lines(file: IO[bytes], path: Path, is_start: bool) -> Iterator[str]:
    for piece in file:
        yield from _split(piece, path, is_start)
        is_start = False


def _split(piece: bytes, path: Path, is_start: bool) -> list[str]:
    """The lines up to a line feed: some files end lines with a carriage return, as well or instead."""
    try:
        text = piece.decode("utf-8-sig" if is_start else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from error
    # Not splitlines, which takes a form feed and other signs within a line for its end.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]
