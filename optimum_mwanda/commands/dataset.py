"""What `--dataset` can name: files, a folder, or a Hub repository."""

import argparse
import bz2
import contextlib
import gzip
import lzma
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .errors import DataError, UsageError, errors_as

if TYPE_CHECKING:
    from ..configuration import MWandaConfig

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

    return pyarrow.input_stream(str(path), compression="zstd")


COMPRESSIONS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstandard,
}


def add_dataset_options(parser: argparse.ArgumentParser, required: bool, purpose: str) -> None:
    """Adds the flags that `open_dataset` reads."""
    group = parser.add_argument_group("dataset")
    group.add_argument(
        "--dataset",
        nargs="+",
        metavar="DATASET",
        required=required,
        help=f"{purpose}: a Hub repository, a folder, or JSON, JSONL, CSV, TSV, Parquet or text files, also "
        "compressed (.gz .xz .zst .bz2); a text file holds one language and is named after it: sw.txt "
        + ("(required)" if required else "(default: none)"),
    )
    group.add_argument(
        "--dataset-config", metavar="NAME", help="Configuration of a repository or folder (default: its default)"
    )
    group.add_argument(
        "--split", metavar="NAME", default="train", help="Split of a repository or folder (default: train)"
    )
    group.add_argument(
        "--streaming",
        action="store_true",
        help="Read a repository or folder in its own order and no further than needed; give --languages too "
        "(default: download all of it and choose rows at random)",
    )


def add_held_out_options(parser: argparse.ArgumentParser, required: bool) -> Any:
    """Adds the flags for a second dataset, used for evaluation, and returns their group."""
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--eval-dataset",
        nargs="+",
        metavar="DATASET",
        required=required,
        help=f"Held-out text, as --dataset ({'required' if required else 'default: none'})",
    )
    group.add_argument("--eval-dataset-config", metavar="NAME", help="As --dataset-config (default: its default)")
    group.add_argument("--eval-split", metavar="NAME", default="test", help="As --split (default: test)")
    return group


def check_calibration_text(places: Sequence[str] | None, config: "MWandaConfig") -> None:
    """Checks at once that text is given if the settings need it.

    Raises:
        UsageError: If it is missing.
    """
    if places is None and config.needs_statistics:
        raise UsageError(
            f"--criterion {config.criterion} with --allocation {config.allocation} needs calibration text: give "
            "--dataset, or --criterion magnitude --allocation uniform."
        )


@contextlib.contextmanager
def open_dataset(
    places: Sequence[str] | None, config: str | None = None, split: str = "train", streaming: bool = False
) -> Iterator[Any]:
    """Opens the dataset that the user named; it can be read while the block runs.

    Args:
        places: Files, or one folder or repository. None for no dataset.
        config: Configuration of a folder or repository.
        split: Split of a folder or repository.
        streaming: Whether to read a folder or repository as a stream.

    Yields:
        A dataset as the library takes it: a `datasets.Dataset` or `IterableDataset`, or a dict of language to texts;
        None for no dataset.

    Raises:
        DataError: If it cannot be read.
    """
    if places is None:
        yield None
        return
    paths = [Path(place) for place in places]
    with tempfile.TemporaryDirectory(prefix="mwanda-data-", ignore_cleanup_errors=True) as scratch:
        with errors_as(DataError):
            if all(path.is_file() for path in paths):
                dataset = _read_files(paths, Path(scratch))
            elif len(paths) == 1:
                dataset = _read_place(paths[0], places[0], config, split, streaming)
            else:
                missing = next(place for place, path in zip(places, paths, strict=True) if not path.is_file())
                raise DataError(f"There is no file {missing!r}: give several files, or one folder or repository.")
        yield dataset


def _read_files(paths: Sequence[Path], scratch: Path) -> Any:
    formats = {path: _format(path) for path in paths}
    if len(set(formats.values())) > 1:
        kinds = ", ".join(f"{path.name} ({kind})" for path, kind in formats.items())
        raise DataError(f"The files have different formats: {kinds}. Give files of one format.")
    (kind,) = set(formats.values())
    if kind == TEXT:
        return _read_texts(paths)
    plain = [_decompressed(path, scratch / str(index)) for index, path in enumerate(paths)]
    # Temporary files must not fill the user's cache; for others, the cache makes a second reading fast.
    cache = None if plain == list(paths) else str(scratch / "cache")
    options = {"sep": "\t"} if _inner(paths[0]).suffix == ".tsv" else {}
    return _load(kind, data_files=[str(path) for path in plain], split="train", cache_dir=cache, **options)


def _read_place(path: Path, name: str, config: str | None, split: str, streaming: bool) -> Any:
    if not path.is_dir():
        if _inner(path).suffix in FORMATS or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
            raise DataError(f"There is no file or folder {name!r}, and the name is not a repository id of the Hub.")
        return _load(name, config, split=split, streaming=streaming)
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return _saved(path, split)
    files = [file for file in sorted(path.iterdir()) if file.is_file() and _inner(file).suffix in FORMATS]
    if files and all(_format(file) == TEXT for file in files):
        return _read_texts(files)
    return _load(str(path), config, split=split, streaming=streaming)


def _saved(path: Path, split: str) -> Any:
    """A dataset that `save_to_disk` wrote."""
    from datasets import DatasetDict, load_from_disk

    dataset = load_from_disk(str(path))
    if not isinstance(dataset, DatasetDict):
        return dataset
    if split not in dataset:
        raise DataError(f"{path} has no split {split!r}: name one of {', '.join(dataset)}.")
    return dataset[split]


def _load(*args: Any, **options: Any) -> Any:
    from datasets import load_dataset
    from datasets.arrow_writer import SchemaInferenceError

    try:
        return load_dataset(*args, **options)
    except Exception as error:
        # datasets only says that an error occurred; its cause says which one.
        cause = error.__cause__ or error
        place = ", ".join(Path(file).name for file in options.get("data_files", ())) or args[0]
        # On an empty file the reader of datasets stops before it knows any columns; on blank lines, a step later.
        if isinstance(cause, (StopIteration, SchemaInferenceError)) or "corresponds to no data" in str(cause):
            raise DataError(f"{place}: there are no rows in it.") from error
        raise DataError(f"{place}: {type(cause).__name__}: {cause}") from error


def _read_texts(paths: Sequence[Path]) -> dict[str, list[str]]:
    """Language, taken from the file name without its ending, to the lines of its files."""
    texts: dict[str, list[str]] = {}
    for path in paths:
        with _opened(path) as file:
            try:
                lines = file.read().decode("utf-8-sig").splitlines()
            except UnicodeDecodeError as error:
                raise DataError(f"{path} is not UTF-8 text: {error}") from error
        texts.setdefault(_inner(path).stem, []).extend(lines)
    return texts


def _decompressed(path: Path, folder: Path) -> Path:
    """A plain copy in a new folder; the path itself if it is not compressed."""
    if path.suffix not in COMPRESSIONS:
        return path
    folder.mkdir()
    target = folder / _inner(path).name
    with _opened(path) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file, 2**20)
    return target


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with COMPRESSIONS[path.suffix](path) if path.suffix in COMPRESSIONS else path.open("rb") as file:
            yield file
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _inner(path: Path) -> Path:
    """`sw.jsonl` for `sw.jsonl.gz`."""
    return path.with_suffix("") if path.suffix in COMPRESSIONS else path


def _format(path: Path) -> str:
    suffix = _inner(path).suffix
    if suffix not in FORMATS:
        raise DataError(
            f"{path} has no known format: its name must end in {', '.join(FORMATS)}, perhaps followed by "
            f"{', '.join(COMPRESSIONS)}."
        )
    return FORMATS[suffix]
