"""Which columns of a dataset are read, and what to do where they have another shape."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from datasets import Dataset, IterableDataset, Translation

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
        advice = f"Name the right one with {setting}."
        nested = _nested(present)
        if self.target:
            return self._advice_on_pairs(setting, nested)
        if not present or self.language in present:
            return advice
        if self.hold_ids(present):
            return f"{advice} If all rows are in one language, pass {{'en': dataset}}."
        texts = [self.text] if self.text in present else [name for name in present if _is_text(present[name])]
        if len(texts) == 1 and not nested:
            one = {"en": (texts[0],)}
            only = f" If all rows are in one language, {_by_language(one, indexed)}"
            return advice + only * (setting == "language_column")
        paths = dict([*nested.items()][:2]) or {name: (name,) for name in texts[:2]}
        if not paths:
            return advice
        return f"{advice} If the table has a column per language, {_by_language(paths, indexed)}"

    def _advice_on_pairs(self, setting: str, nested: Mapping[str, tuple[str, ...]]) -> str:
        advice = f"Name the right one with {setting}."
        if setting != "language_column":
            advice = (
                "An encoder-decoder needs a source and a target: name their columns with text_column and "
                "target_column, or give 'input_ids' and 'labels'."
            )
        if len(nested) < 2:
            return advice
        (_, source), (code, target) = [*nested.items()][:2]
        row = f"{self.language!r}: {code!r}, {self.text!r}: row{_keys(source)}, {self.target!r}: row{_keys(target)}"
        return f"{advice} From a table of translations, pass [{{{row}}} for row in dataset]."


def _nested(present: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The fields of columns that hold several: their names, and where each is."""
    return {
        code: (name, code)
        for name, kind in present.items()
        if isinstance(kind, (Translation, Mapping))
        for code in (kind.languages if isinstance(kind, Translation) else kind)
    }


def _is_text(kind: Any) -> bool:
    """Whether a feature, or a value, is a text."""
    return isinstance(kind, str) or getattr(kind, "dtype", "") in ("string", "large_string")


def _keys(path: Sequence[str]) -> str:
    return "".join(f"[{name!r}]" for name in path)


def _by_language(paths: Mapping[str, tuple[str, ...]], indexed: bool) -> str:
    """How to pass the columns of a table as a dict of language to texts."""
    keys = {code: _keys(path) for code, path in paths.items()}
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
    texts: dict[str, Any] = {}
    # A stream may not know its columns before its first row.
    present = list(next(iter(dataset), {})) if dataset.column_names is None else dataset.column_names
    for language, path in columns.items():
        names = [path] if path in present else path.split(".")
        selected = dataset.select_columns(_known(names[0], present, language))
        if isinstance(dataset, Dataset):
            flat = selected.flatten() if len(names) > 1 else selected
            texts[language] = flat[_known(path, flat.column_names, language)[0]]
        else:
            # Beside the texts, a column may hold pictures too.
            plain = selected if selected.features is None else selected.decode(False)
            _check_path(next(iter(plain), {}), names, language)
            texts[language] = _Field(plain, names)
        first = next(iter(texts[language]), None)
        if isinstance(first, Mapping):
            raise ValueError(
                f"Column {path!r} for language {language!r} has fields: name one of them, as "
                f"{' or '.join(f'{path}.{name}' for name in [*first][:2])}."
            )
    return texts


def _check_path(value: Any, names: Sequence[str], language: str) -> None:
    for depth, name in enumerate(names):
        if value is None:  # as in a row without translations, which tells nothing
            return
        inner = [".".join([*names[:depth], each]) for each in (value if isinstance(value, Mapping) else ())]
        _known(".".join(names[: depth + 1]), inner, language)
        value = value[name]


@dataclasses.dataclass(frozen=True)
class _Field:
    """The texts in a field of a stream, as often as they are read; None where a row has none."""

    stream: IterableDataset
    names: Sequence[str]

    def __iter__(self) -> Iterator[Any]:
        for value in self.stream:
            for name in self.names:
                value = value.get(name) if isinstance(value, Mapping) else None
            yield value


def _known(name: str, present: Sequence[str], language: str) -> list[str]:
    if name not in present:
        there = ", ".join(map(repr, present))
        raise ValueError(f"There is no column {name!r} for language {language!r}. The dataset has: {there}.")
    return [name]
