"""What `--dataset` can name: files, a folder, or a Hub repository."""

import contextlib
import dataclasses
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils import abridged
from .errors import DataError, errors_as
from .text_files import (
    FORMATS,
    TEXT,
    decompressed,
    format_of,
    inner_path,
    is_language,
    language_of,
    split_of,
)
from .text_lines import Lines, LineStream


@contextlib.contextmanager
def open_dataset(
    places: Sequence[str] | None,
    config: Sequence[str] | None = None,
    split: str = "train",
    streaming: bool = False,
    *,
    columns: Mapping[str, str] | None = None,
    language_column: str = "language",
) -> Iterator[Any]:
    """Opens the dataset that the user named; it can be read while the block runs.

    Args:
        places: Files, or one folder or repository, or both. None for no dataset.
        config: Configuration of a folder or repository; or one per language, as `sw` or `sw=20231101.sw`.
        split: Split of a folder or repository.
        streaming: Whether to read a folder or repository as a stream.
        columns: Language to its column, for a table without a language column.
        language_column: Column that names the language. Files that lack it are named after their language.

    Yields:
        A dataset as the library takes it: a `datasets.Dataset` or `IterableDataset`, or a dict of language to texts
        or to one of these; None for no dataset.

    Raises:
        DataError: If it cannot be read.
    """
    if places is None:
        yield None
        return
    paths = [Path(place) for place in places]
    with tempfile.TemporaryDirectory(prefix="mwanda-data-", ignore_cleanup_errors=True) as scratch:
        with errors_as(DataError):
            place = _Place(language_column if not columns else None, split, streaming, Path(scratch))
            configs = {} if config is None else dict(map(_named_config, config))
            if len(configs) < len(config or ()):
                raise DataError("The configurations name a language twice: give one for each.")
            files = [path for path in paths if path.is_file()]
            named = [name for name, path in zip(places, paths, strict=True) if path not in files]
            if config is not None and not named:
                raise DataError("Files have no configurations: leave --dataset-config out, or give a repository.")
            if len(named) > 1:
                listed = ", ".join(map(repr, named))
                raise DataError(f"{listed} are not files: give one folder or repository, and any files beside it.")
            if not named:
                dataset = place.files(files)
            elif len(configs) > 1 or any("=" in name for name in config or ()):
                dataset = {language: place.named(named[0], name) for language, name in configs.items()}
            else:
                dataset = place.named(named[0], next(iter(configs.values()), None))
            if columns:
                dataset = _taken_apart(dataset, columns)
            if named and files:
                beside = dataclasses.replace(place, streaming=False).files(files)
                dataset = _joined({named[0]: dataset, ", ".join(map(str, files)): beside}, language_column)
        yield dataset


def _named_config(text: str) -> tuple[str, str]:
    language, _, name = text.partition("=")
    return language, name or language


def _taken_apart(dataset: Any, columns: Mapping[str, str]) -> dict[str, Any]:
    from ..data.columns import read_wide

    if isinstance(dataset, Mapping):
        raise DataError(
            f"The columns of languages ({', '.join(columns)}) are for one table, but here every file or configuration "
            "is a language of its own."
        )
    return read_wide(dataset, columns)


def _joined(datasets: Mapping[str, Any], language_column: str) -> dict[str, Any]:
    """Language to its texts, in datasets that have none in common, given under the names of their places."""
    from datasets import IterableDataset

    from ..data.by_language import split_by_language
    from ..data.columns import Columns

    found: dict[str, Any] = {}
    for place, dataset in datasets.items():
        if isinstance(dataset, IterableDataset):
            raise DataError(
                f"{place} is a stream, in which languages come as they come, so nothing can be added to it: leave "
                "--streaming out, or give a configuration for each language."
            )
        if not isinstance(dataset, Mapping):
            dataset = split_by_language(dataset, Columns(language_column, ""))
        if twice := sorted(found.keys() & dataset.keys()):
            raise DataError(
                f"Both {' and '.join(datasets)} have texts of {abridged(map(repr, twice))}: put them into one place, "
                "or give files only."
            )
        found.update(dataset)
    return found


@dataclasses.dataclass(frozen=True)
class _Place:
    """Reads what is at a place.

    Attributes:
        language_column: Column that names the language; None if there need not be one.
        split: Split to read.
        streaming: Whether to read tables as streams.
        scratch: Folder for temporary files.
    """

    language_column: str | None
    split: str
    streaming: bool
    scratch: Path

    def files(self, paths: Sequence[Path]) -> Any:
        """One table, or language to its texts or table."""
        formats = {path: format_of(path) for path in paths}
        if len(set(formats.values())) > 1:
            kinds = ", ".join(f"{path.name} ({kind})" for path, kind in formats.items())
            raise DataError(f"The files have different formats: {kinds}. Give files of one format.")
        languages: dict[str, list[Path]] = {}
        for path in paths:
            languages.setdefault(language_of(path), []).append(path)
        if TEXT in formats.values():
            return {language: self._lines(part) for language, part in languages.items()}
        dataset = self._table(paths)
        by_name = self.language_column is not None and self.language_column not in (dataset.column_names or ())
        if by_name and all(map(is_language, languages)):
            return {language: self._table(part) for language, part in languages.items()}
        return dataset

    def named(self, name: str, config: str | None) -> Any:
        """What is in a folder or a repository."""
        path = Path(name)
        if not path.is_dir():
            if inner_path(path).suffix in FORMATS or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
                raise DataError(f"There is no file or folder {name!r}, and the name is not a repository id of the Hub.")
            return self._loaded(name, config)
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return self._saved(path)
        files = [file for file in sorted(path.iterdir()) if file.is_file() and inner_path(file).suffix in FORMATS]
        kinds = {format_of(file) for file in files}
        if kinds == {TEXT} or (len(kinds) == 1 and config is None and all(is_language(language_of(f)) for f in files)):
            return self.files(self._of_split(path, files))
        return self._loaded(str(path), config)

    def _of_split(self, folder: Path, files: Sequence[Path]) -> list[Path]:
        """The files that are called after the split, as `sw.test.txt`, or else those that are called after none."""
        from ..data.rows import SPLITS

        wanted = SPLITS.get(self.split, self.split)
        found = [file for file in files if split_of(file) == wanted] or [
            file for file in files if split_of(file) is None
        ]
        if not found:
            there = ", ".join(sorted({str(split_of(file)) for file in files}))
            raise DataError(f"{folder} has no file of the split {self.split!r}: name one of {there}.")
        return found

    def _saved(self, path: Path) -> Any:
        """A dataset that `save_to_disk` wrote."""
        from datasets import DatasetDict, load_from_disk

        from ..data.rows import is_by_language

        dataset = load_from_disk(str(path))
        if not isinstance(dataset, DatasetDict):
            return dataset
        if self.split in dataset:
            return dataset[self.split]
        if self.language_column is not None and is_by_language(dataset, self.language_column):
            return dict(dataset)
        raise DataError(f"{path} has no split {self.split!r}: name one of {', '.join(dataset)}.")

    def _lines(self, paths: Sequence[Path]) -> Lines | LineStream:
        """The lines of text files in one language."""
        if self.streaming:
            return LineStream(paths)
        return Lines(decompressed(path, self.scratch) for path in paths)

    def _table(self, paths: Sequence[Path]) -> Any:
        """The rows of files of one format."""
        plain = [decompressed(path, self.scratch) for path in paths]
        shown = ", ".join(path.name for path in paths)
        if format_of(paths[0]) == "csv":
            delimiter = "\t" if inner_path(paths[0]).suffix == ".tsv" else ","
            with _explained(shown):
                return self._delimited([str(path) for path in plain], delimiter)
        # Temporary files must not fill the user's cache; for others, the cache makes a second reading fast.
        cache = None if plain == list(paths) else str(self.scratch / "cache")
        with _explained(shown):
            from datasets import load_dataset

            files = [str(path) for path in plain]
            return load_dataset(
                format_of(paths[0]), data_files=files, split="train", cache_dir=cache, streaming=self.streaming
            )

    def _loaded(self, name: str, config: str | None) -> Any:
        """What datasets finds in a folder or a repository."""
        from datasets import DownloadManager, load_dataset, load_dataset_builder
        from datasets.packaged_modules.csv.csv import Csv

        with _explained(name):
            builder = load_dataset_builder(name, config)
            options: dict[str, Any] = {}
            if isinstance(builder, Csv):
                settings = builder.config
                files = (settings.data_files or {}).get(self.split)
                if files and settings.header == "infer" and settings.names is None:
                    found = files if self.streaming else DownloadManager().download(list(files))
                    return self._delimited([str(file) for file in found], settings.sep)
                options["keep_default_na"] = False  # `nan` is a language
            return load_dataset(name, config, split=self.split, streaming=self.streaming, **options)

    def _delimited(self, files: list[str], delimiter: str) -> Any:
        from datasets import Dataset, Features, IterableDataset, Value

        from ..data.delimited import columns_of, rows_of

        source = {"files": files, "delimiter": delimiter}
        features = Features({name: Value("string") for name in columns_of(files, delimiter)})
        if self.streaming:
            return IterableDataset.from_generator(rows_of, features, gen_kwargs=source)
        dataset = Dataset.from_generator(rows_of, features, cache_dir=str(self.scratch / "csv"), gen_kwargs=source)
        if not len(dataset):
            raise DataError(f"{', '.join(Path(file).name for file in files)}: there are no rows in it.")
        return dataset


@contextlib.contextmanager
def _explained(place: str) -> Iterator[None]:
    """Inside the block, errors of datasets say what happened and where."""
    from datasets.arrow_writer import SchemaInferenceError

    from ..data.delimited import UnreadableRows

    try:
        yield
    except DataError:
        raise
    except Exception as error:
        # datasets only says that an error occurred; its cause says which one.
        cause = error if isinstance(error, UnreadableRows) else error.__cause__ or error
        if isinstance(cause, UnreadableRows):
            raise DataError(str(cause)) from error
        # On an empty file the reader of datasets stops before it knows any columns; on blank lines, a step later.
        if isinstance(cause, (StopIteration, SchemaInferenceError)) or "corresponds to no data" in str(cause):
            raise DataError(f"{place}: there are no rows in it.") from error
        raise DataError(f"{place}: {type(cause).__name__}: {cause}") from error
