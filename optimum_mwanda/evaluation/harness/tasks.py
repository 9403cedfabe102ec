"""Tasks for lm-evaluation-harness, made from a dataset with a language column or from local files of known benchmarks.

Each function writes its own folder into the folder that `lm-eval run --include_path` takes. The task files refer to
their data by absolute path: make them again after moving the folder.
"""

import csv
import importlib.util
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ...data.rows import Row, feed
from ...data.surrogates import check_whole
from ..settings import EvaluationSettings
from .xwinograd import with_blank

GROUP = "mwanda_bits_per_byte"
DOCUMENTS_PER_LANGUAGE = 100

# Codes in data sets that are not ISO 639 codes.
ISO_CODES = {"jp": "ja"}


def write_language_tasks(
    dataset: Any,
    output: str | os.PathLike[str],
    *,
    group: str = GROUP,
    languages: Sequence[str] | None = None,
    language_column: str = EvaluationSettings.language_column,
    text_column: str = EvaluationSettings.text_column,
    documents_per_language: int = DOCUMENTS_PER_LANGUAGE,
    characters_per_document: int | None = None,
    seed: int = 0,
) -> list[str]:
    """Writes one task per language that measures bits per byte and byte perplexity, and a group of these tasks.

    Every row is its own document, read in disjoint windows of the model's length. The group gives the mean over
    languages, in which every language counts equally.

    Args:
        dataset: `datasets.Dataset` or `IterableDataset`, a dict of language to texts, or a list of rows.
        output: Folder for `--include_path`. The tasks and their documents go into `<output>/<group>`.
        group: Name of the group, with which the names of its tasks begin.
        languages: Languages to take; None for all.
        language_column: Column that names the language.
        text_column: Column with the text.
        documents_per_language: Most documents per language; empty ones are left out.
        characters_per_document: Where to cut documents; None to keep them whole.
        seed: Seed for choosing documents if there are more than needed.

    Returns:
        Name of the group, then those of its tasks, languages in sorted order.

    Raises:
        FileExistsError: If `<output>/<group>` holds something.
        TypeError: If the dataset or its columns have a type that cannot be read.
        ValueError: If columns or languages are missing, a language has no text, or a limit is not positive.
    """
    for name, limit in (
        ("documents_per_language", documents_per_language),
        ("characters_per_document", characters_per_document),
    ):
        if limit is not None and limit < 1:
            raise ValueError(f"{name}={limit} must be at least 1.")
    documents = _Documents(text_column, documents_per_language, characters_per_document)
    feed(
        dataset,
        documents,
        language_column=language_column,
        text_column=text_column,
        languages=languages,
        seed=seed,
    )
    silent = sorted(language for language, texts in documents.texts.items() if not texts)
    if silent or not documents.texts:
        raise ValueError(f"There is no text{' in ' + ', '.join(map(repr, silent)) if silent else ''}.")
    tasks = {
        language: {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "text",  # the column: a template would be filled, and a text like "[1, 2]" parsed
            "metric_list": [{"metric": "bits_per_byte"}, {"metric": "byte_perplexity"}],
        }
        for language in sorted(documents.texts)
    }
    rows = {language: [{"text": text} for text in texts] for language, texts in documents.texts.items()}
    return _write_group(Path(output), group, tasks, ("bits_per_byte", "byte_perplexity"), rows)


def write_xcopa_tasks(
    source: str | os.PathLike[str], output: str | os.PathLike[str], *, group: str = "xcopa_local", split: str = "test"
) -> list[str]:
    """Writes the harness's own XCOPA tasks over local files, to run without a network.

    Args:
        source: Folder with one file `<split>.<language>.jsonl` per language, as the XCOPA repository has them.
        output: Folder for `--include_path`. The tasks go into `<output>/<group>`.
        group: Name of the group, with which the names of its tasks begin.
        split: First part of the file names.

    Returns:
        Name of the group, then those of its tasks, languages in sorted order.

    Raises:
        FileExistsError: If `<output>/<group>` holds something.
        FileNotFoundError: If there are no such files.
        ImportError: If lm-eval is not installed.
        ValueError: If the harness has no task for a language.
    """
    files = {path.name.split(".")[1]: path for path in sorted(Path(source).glob(f"{split}.*.jsonl"))}
    if not files:
        raise FileNotFoundError(f"{source} holds no file {split}.<language>.jsonl: give the folder of the XCOPA files.")
    tasks = {language: {"include": _harness_task("xcopa", f"default_{language}.yaml")} for language in files}
    return _write_group(Path(output), group, tasks, ("acc",), files)


def write_xwinograd_tasks(
    source: str | os.PathLike[str], output: str | os.PathLike[str], *, group: str = "xwinograd_local"
) -> list[str]:
    """Writes the harness's own XWinograd tasks over a local file, to run without a network.

    The sentences have the form that the harness expects: with `_` for the pronoun, and its two candidates.

    Args:
        source: Folder with the file `dataset.tsv` of Tikhonov and Ryabinin (2021).
        output: Folder for `--include_path`. The tasks and their data go into `<output>/<group>`.
        group: Name of the group, with which the names of its tasks begin.

    Returns:
        Name of the group, then those of its tasks, languages in sorted order.

    Raises:
        FileExistsError: If `<output>/<group>` holds something.
        FileNotFoundError: If there is no such file.
        ImportError: If lm-eval is not installed.
        ValueError: If a row does not have the form of that file, or the harness has no task for a language.
    """
    rows: dict[str, list[Mapping[str, Any]]] = {}
    with Path(source, "dataset.tsv").open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), start=1):
            try:
                rows.setdefault(row[0], []).append(with_blank(row))
            except (ValueError, LookupError, TypeError) as error:
                raise ValueError(f"Row {number} of {file.name} is not a row of XWinograd: {error}") from error
    tasks = {language: {"include": _harness_task("xwinograd", f"xwinograd_{language}.yaml")} for language in rows}
    return _write_group(Path(output), group, tasks, ("acc",), rows)


class _Documents:
    """Gathers the texts of a language until it has enough."""

    def __init__(self, text_column: str, max_documents: int, characters: int | None) -> None:
        self.text_column = text_column
        self.max_documents = max_documents
        self.characters = characters
        self.texts: dict[str, list[str]] = {}

    def add(self, language: str, row: Row) -> None:
        texts = self.texts.setdefault(language, [])
        text = row.get(self.text_column)
        if text is not None and not isinstance(text, str):
            raise TypeError(
                f"Column {self.text_column!r} holds a {type(text).__name__} for language {language!r}: give strings."
            )
        if text and text.strip():
            check_whole(text, f"A text of language {language!r} (column {self.text_column!r})")
            texts.append(text[: self.characters])

    def is_full(self, language: str) -> bool:
        return len(self.texts.get(language, ())) >= self.max_documents


def _harness_task(folder: str, name: str) -> str:
    """Path of a task file that comes with the harness."""
    found = importlib.util.find_spec("lm_eval")
    if found is None or found.origin is None:
        raise ImportError("The tasks of lm-evaluation-harness are needed: pip install 'lm-eval[hf]'.")
    path = Path(found.origin).parent / "tasks" / folder / name
    if not path.is_file():
        raise ValueError(f"The installed lm-eval has no task file {folder}/{name}: leave this language out.")
    return str(path)


def _write_group(
    output: Path,
    group: str,
    tasks: Mapping[str, Mapping[str, Any]],
    metrics: Iterable[str],
    data: Mapping[str, Path | Sequence[Mapping[str, Any]]],
) -> list[str]:
    """Writes a group of tasks, one per language, over files, or over rows that are written to files beside them.

    Args:
        output: Folder for `--include_path`.
        group: Name of the group and of its folder.
        tasks: Language to the special entries of its task.
        metrics: What the group averages over its tasks.
        data: Language to its JSON lines file, or to rows for one.

    Returns:
        Name of the group, then those of its tasks.
    """
    folder = (output / group).resolve()
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: delete it, or name another output or group.")
    names = {language: f"{group}_{re.sub(r'[^0-9A-Za-z-]', '_', language)}" for language in tasks}
    if len(set(names.values())) < len(names):
        raise ValueError(
            f"Some of these languages differ only in characters that a task's name cannot have: {', '.join(names)}. "
            "Rename them."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for language, special in sorted(tasks.items()):
        file = data[language]
        if not isinstance(file, Path):
            rows, file = file, folder / f"{names[language]}.jsonl"
            file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        task = {
            **special,
            "task": names[language],
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {"test": str(file.resolve())}},
            "validation_split": None,
            "test_split": "test",
            "metadata": {"version": 1.0, "benchmark": group, "language": ISO_CODES.get(language, language)},
        }
        _write_yaml(folder / f"{names[language]}.yaml", task)
    # Every language counts equally, however many documents it has.
    means = [{"metric": metric, "aggregation": "mean", "weight_by_size": False} for metric in metrics]
    _write_yaml(
        folder / "_group.yaml",
        {
            "group": group,
            "task": sorted(names.values()),
            "aggregate_metric_list": means,
            "metadata": {"version": 1.0},
        },
    )
    return [group, *sorted(names.values())]


def _write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(dict(values), allow_unicode=True, sort_keys=False), encoding="utf-8")
