"""Which columns of a dataset are read, and what to do where they have another shape."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import Dataset, Translation

TOKENISED = ("input_ids", "attention_mask", "position_ids", "labels")
"""Columns of tokenised rows."""


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the columns to read.

    Attributes:
        language: Column with the language of a row.
        text: Column with the text; not needed if there are `input_ids`.
        target: Column with the target for an encoder-decoder; not needed if there are `input_ids` and `labels`. None
            for every other model.
    """

    language: str
    text: str
    target: str | None = None

    def hold_ids(self, present: Iterable[str]) -> bool:
        """Whether rows with these columns are tokenised."""
        return {"input_ids", "labels"} <= {*present} if self.target else "input_ids" in present

    def needed(self, present: Iterable[str]) -> list[str]:
        """Those of some columns that are read."""
        return [name for name in present if name in (self.language, self.text, self.target, *TOKENISED)]

    def check(
        self, present: Mapping[str, Any] | None, where: str = "", language: bool = True, indexed: bool = True
    ) -> None:
        """Checks that a dataset or a row has the columns that are needed.

        Args:
            present: Its columns, with their features or values.
            where: Which row it is, for messages.
            language: Whether it needs a language column.
            indexed: Whether `dataset["text"]` is a column of the dataset, for messages.

        Raises:
            ValueError: If a column is missing.
        """
        present = present or {}
        needed = {"language_column": self.language} if language else {}
        if not self.hold_ids(present):
            needed |= {"text_column": self.text} | ({"target_column": self.target} if self.target else {})
        for setting, column in needed.items():
            if column not in present:
                raise ValueError(
                    f"Column {column!r} is missing{where}. The dataset has: {', '.join(map(repr, present))}. "
                    + self._advice(setting, present, indexed)
                )

    def _advice(self, setting: str, present: Mapping[str, Any], indexed: bool) -> str:
        if self.target and setting != "language_column":
            return (
                "An encoder-decoder needs a source and a target: name their columns with text_column and "
                "target_column, or give 'input_ids' and 'labels'."
            )
        advice = f"Name the right one with {setting}"
        if setting != "language_column" or self.target or not present:
            return f"{advice}."
        if self.hold_ids(present):
            return f"{advice}. If all rows are in one language, pass {{'en': dataset}}."
        if self.text in present:
            return f"{advice}. If all rows are in one language, {_by_language({'en': (self.text,)}, indexed)}"
        nested = {
            code: (name, code)
            for name, kind in present.items()
            if isinstance(kind, (Translation, Mapping))
            for code in (kind.languages if isinstance(kind, Translation) else kind)
        }
        paths: dict[str, tuple[str, ...]] = dict([*nested.items()][:2]) or {name: (name,) for name in [*present][:2]}
        return f"{advice}. If the table has a column per language, {_by_language(paths, indexed)}"


def _by_language(paths: Mapping[str, tuple[str, ...]], indexed: bool) -> str:
    """How to pass the columns of a table as a dict of language to texts."""
    keys = {code: "".join(f"[{name!r}]" for name in path) for code, path in paths.items()}
    texts = {
        code: f"dataset{key}" if indexed and len(paths[code]) == 1 else f"[row{key} for row in dataset]"
        for code, key in keys.items()
    }
    flags = [f"{code}={'.'.join(path)}" for code, path in paths.items()]
    return (
        f"pass {{{', '.join(f'{code!r}: {text}' for code, text in texts.items())}}} (on the command line: --columns "
        f"{' '.join(flags)})."
    )


def read_wide(dataset: Any, columns: Mapping[str, str]) -> dict[str, Any]:
    """Takes a table with one column per language apart.

    Args:
        dataset: `datasets.Dataset` or `IterableDataset`.
        columns: Language to its column; `translation.sw` is the field `sw` of the column `translation`.

    Returns:
        Language to its texts, which are read when they are needed.

    Raises:
        ValueError: If there is no such column.
    """
    texts = {}
    # A stream may not know its columns before its first row.
    present = list(next(iter(dataset), {})) if dataset.column_names is None else dataset.column_names
    for language, path in columns.items():
        names = [path] if path in present else path.split(".")
        selected = dataset.select_columns(_known(names[0], present, language))
        if isinstance(dataset, Dataset):
            flat = selected.flatten() if len(names) > 1 else selected
            texts[language] = flat[_known(path, flat.column_names, language)[0]]
            continue
        if selected.features is not None:
            selected = selected.decode(False)  # beside the texts, a column may hold pictures too
        value: Any = next(iter(selected), {})
        for depth, name in enumerate(names):
            if value is not None:  # as in a row without translations, which tells nothing
                inner = [".".join([*names[:depth], each]) for each in (value if isinstance(value, Mapping) else ())]
                _known(".".join(names[: depth + 1]), inner, language)
                value = value[name]
            selected = selected[name]
        texts[language] = selected
    return texts


def _known(name: str, present: Sequence[str], language: str) -> list[str]:
    if name not in present:
        there = ", ".join(map(repr, present))
        raise ValueError(f"There is no column {name!r} for language {language!r}. The dataset has: {there}.")
    return [name]
