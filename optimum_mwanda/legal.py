"""Legal values of a setting: stated beside its field in `MWandaConfig`, used in checks, docstrings and flags."""

import dataclasses
import math
import re
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from .values import check_number, is_close, is_number


class Legal(Protocol):
    """The legal values of a setting."""

    def check(self, name: str, value: Any) -> None:
        """Raises a ValueError that says what is allowed if the value is not."""


@dataclasses.dataclass(frozen=True)
class OneOf:
    """One of some names.

    Attributes:
        names: The names. A registry may grow, so they are looked up at each check.
        register: The function that adds a name, if there is one.
    """

    names: Collection[str]
    register: str | None = None

    def check(self, name: str, value: Any) -> None:
        """Refuses anything else than these names."""
        if value not in tuple(self.names):
            hint = ""
            if self.register is not None:
                hint = f" One of your own? Then register it first with {self.register} (on the command line: --plugin)."
            raise ValueError(f"{name}={value!r} is not known. Choose one of: {self.listed}.{hint}")

    @property
    def listed(self) -> str:
        """The names, quoted."""
        return ", ".join(map(repr, self.names))

    def __str__(self) -> str:
        return " | ".join(map(repr, self.names))


@dataclasses.dataclass(frozen=True)
class Number:
    """A number in a range, whole or not."""

    at_least: float = -math.inf
    above: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf
    whole: bool = False

    def check(self, name: str, value: Any) -> None:
        """Refuses anything else than a number in the range."""
        check_number(name, value, self._holds, self._wanted())

    @property
    def range(self) -> str:
        """`at least 0`, `above 0`, `in [0, 1)`."""
        end = min(self.at_most, self.below)
        if end < math.inf:
            start = f"[{self.at_least}" if self.above == -math.inf else f"({self.above}"
            return f"in {start}, {end}{']' if self.below == math.inf else ')'}"
        return f"at least {self.at_least}" if self.above == -math.inf else f"above {self.above}"

    def _holds(self, value: float) -> bool:
        is_inside = self.at_least <= value <= self.at_most and self.above < value < self.below
        return is_inside and (isinstance(value, int) or not self.whole)

    def _wanted(self) -> str:
        if min(self.at_most, self.below) == 1:
            return f"a share {self.range}, 0.5 for 50 %"
        if self.whole:
            return f"a whole number of {self.range}"
        return "a number that is not negative" if self.at_least == 0 else f"a number {self.range}"

    def __str__(self) -> str:
        return f"{'int' if self.whole else 'float'} {self.range}"


@dataclasses.dataclass(frozen=True)
class NumberPerLanguage(Number):
    """A number for all languages, or one for each."""

    def check(self, name: str, value: Any) -> None:
        """Refuses anything else."""
        if not isinstance(value, Mapping):
            super().check(name, value)
            return
        if not value or not all(isinstance(language, str) for language in value):
            raise ValueError(f"{name}={value!r} is not allowed: give {self._wanted()}, or a dict of language to such.")
        for language, number in value.items():
            super().check(f"{name}[{language!r}]", number)

    def __str__(self) -> str:
        return f"{super().__str__()} | Mapping[str, {'int' if self.whole else 'float'}]"


@dataclasses.dataclass(frozen=True)
class YesOrNo:
    """True or False."""

    def check(self, name: str, value: Any) -> None:
        """Refuses anything else."""
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value!r} is not allowed: give True or False.")

    def __str__(self) -> str:
        return "bool"


@dataclasses.dataclass(frozen=True)
class Text:
    """A string."""

    def check(self, name: str, value: Any) -> None:
        """Refuses anything else than a string."""
        if not isinstance(value, str):
            raise ValueError(f"{name}={value!r} is not allowed: give a string.")

    def __str__(self) -> str:
        return "str"


@dataclasses.dataclass(frozen=True)
class Weighting(OneOf):
    """The name of a rule, or a weight for each language."""

    def check(self, name: str, value: Any) -> None:
        """Refuses anything else."""
        if isinstance(value, str):
            if value not in self.names:
                raise ValueError(
                    f"{name}={value!r} is not known. Choose one of: {self.listed}, or give a dict of language to "
                    "weight."
                )
            return
        if not isinstance(value, Mapping) or not value:
            raise ValueError(f"{name}={value!r}: give a name or a dict of language to weight.")
        for language, weight in value.items():
            if not isinstance(language, str) or not is_number(weight) or weight < 0:
                raise ValueError(
                    f"{name}[{language!r}]={weight!r} is not allowed: give weights that are not negative, keyed by "
                    "language code."
                )

    def __str__(self) -> str:
        return f"{super().__str__()} | Mapping[str, float]"


def read_pattern(pattern: Any) -> tuple[int, int] | None:
    """`(N, M)` of an N:M pattern, None for `"unstructured"`.

    Raises:
        ValueError: If it is neither.
    """
    if pattern == "unstructured":
        return None
    match = re.fullmatch(r"(\d+):(\d+)", pattern) if isinstance(pattern, str) else None
    if match is None or not 0 < int(match[1]) < int(match[2]):
        raise ValueError(
            f"pattern={pattern!r} is not known. Give 'unstructured', or 'N:M' with 0 < N < M to keep N of "
            "every M weights ('2:4')."
        )
    return int(match[1]), int(match[2])


def implied_by_pattern(pattern: str, sparsity: float | None, allocation: str | None) -> dict[str, Any]:
    """The sparsity and the allocation that a pattern implies where none is given.

    Raises:
        ValueError: If the pattern is not known, or contradicts what is given.
    """
    kept = read_pattern(pattern)
    if kept is None:
        return {"sparsity": 0.5, "allocation": "outliers"}
    implied = 1 - kept[0] / kept[1]
    if sparsity is not None and not is_close(sparsity, implied):
        raise ValueError(
            f"sparsity={sparsity!r} contradicts pattern={pattern!r}, which keeps {kept[0]} of every {kept[1]} weights: "
            f"leave sparsity out, or give {implied:g}."
        )
    if allocation not in (None, "uniform"):
        raise ValueError(
            f"allocation={allocation!r} cannot be combined with pattern={pattern!r}: an N:M pattern fixes the sparsity "
            "of every block. Give allocation='uniform', or use pattern='unstructured'."
        )
    return {"sparsity": implied, "allocation": "uniform"}


def setting(default: Any, help: str, legal: Legal | None = None) -> Any:
    """A field of a dataclass of settings.

    Args:
        default: Its default.
        help: The text that describes it wherever users set it.
        legal: Its legal values, besides None if that is the default.
    """
    return dataclasses.field(default=default, metadata={"help": help, "legal": legal})
