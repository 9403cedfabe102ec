"""Files of text: their format, their compression, and the language and split that their name says."""

import bz2
import contextlib
import gzip
import hashlib
import io
import lzma
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from .errors import DataError

TEXT = "text"
FORMATS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": TEXT,
    ".text": TEXT,
}


def _open_zstandard(path: Path) -> Any:
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))


COMPRESSIONS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstandard,
}

LANGUAGE = re.compile(r"[a-z]{2,3}([-_]([A-Za-z]{2}|[A-Z][a-z]{3}|[0-9]{3}))*")
"""A file or configuration that is called after a language: sw, zh-Hant, eng_Latn, pt-BR."""


def language_of(path: Path) -> str:
    """`sw` for `sw.jsonl.gz`, and for `sw.train.txt` and `train.sw.txt`."""
    from ..data.rows import SPLITS

    parts = inner_path(path).stem.split(".")
    return ".".join(part for part in parts if part not in SPLITS) or ".".join(parts)


def split_of(path: Path) -> str | None:
    """`train` for `sw.train.txt`; None for `sw.txt`."""
    from ..data.rows import SPLITS

    parts = inner_path(path).stem.split(".")
    return next((SPLITS[part] for part in parts if part in SPLITS), None) if len(parts) > 1 else None


def is_language(name: str) -> bool:
    """Whether a name is that of a language, as far as its form says."""
    from ..data.rows import SPLITS

    return bool(LANGUAGE.fullmatch(name)) and name not in SPLITS


def decompressed(path: Path, scratch: Path) -> Path:
    """A plain copy in a folder of its own; the path itself if it is not compressed."""
    if path.suffix not in COMPRESSIONS:
        return path
    target = scratch / hashlib.sha256(str(path).encode()).hexdigest() / inner_path(path).name
    if target.exists():
        return target
    target.parent.mkdir()
    with opened(path) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file, 2**20)
    return target


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, decompressed.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        with COMPRESSIONS[path.suffix](path) if path.suffix in COMPRESSIONS else path.open("rb") as file:
            yield file
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def inner_path(path: Path) -> Path:
    """`sw.jsonl` for `sw.jsonl.gz`."""
    return path.with_suffix("") if path.suffix in COMPRESSIONS else path


def format_of(path: Path) -> str:
    """The name of a file's format, from its ending.

    Raises:
        DataError: If it has none of these endings.
    """
    suffix = inner_path(path).suffix
    if suffix not in FORMATS:
        raise DataError(
            f"{path} has no known format: its name must end in {', '.join(FORMATS)}, perhaps followed by "
            f"{', '.join(COMPRESSIONS)}."
        )
    return FORMATS[suffix]
