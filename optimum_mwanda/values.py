"""Checking and holding the values of settings."""

import dataclasses
import math
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

SELF_WRITTEN = "self"
"""What stands in place of a language for calibration text that the model itself has written.

`self-sw` stands for such text that was begun in `sw`.
"""


def is_self_written(language: str) -> bool:
    """Whether this stands for text that the model itself has written."""
    return language == SELF_WRITTEN or language.startswith(f"{SELF_WRITTEN}-")


class FrozenDict(dict[str, Any]):
    """A dict that cannot be changed, so that it can be hashed."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("This dict belongs to an immutable config: make another config with config.replace(...).")

    __setitem__ = __delitem__ = update = pop = popitem = clear = setdefault = __ior__ = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)


def is_number(value: Any) -> bool:
    """Whether a value is a number of at most 64 bits, and not a bool, NaN or infinity."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**64


def is_close(value: Any, expected: float) -> bool:
    """Whether a value is a number that equals another one up to rounding to six decimals."""
    return is_number(value) and math.isclose(value, expected, abs_tol=1e-6)


def check_number(name: str, value: Any, is_legal: Callable[[Any], bool], allowed: str) -> None:
    """Checks a number.

    Raises:
        ValueError: If it is not a number or not legal; the message says what is allowed.
    """
    if not is_number(value) or not is_legal(value):
        raise ValueError(f"{name}={value!r} is not allowed: give {allowed}.")


def check_types(instance: T) -> T:
    """Checks the plain fields of a dataclass that was read from a file.

    Args:
        instance: Its fields with other types than strings, numbers, bools and None are not checked.

    Returns:
        The same.

    Raises:
        ValueError: If a field has a value of another type.
    """
    for field in dataclasses.fields(instance):  # type: ignore[arg-type]
        kinds = typing.get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
        if not set(kinds) <= {str, int, float, bool, types.NoneType}:
            continue
        value = getattr(instance, field.name)
        if type(value) not in kinds and not (float in kinds and type(value) is int):
            names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
            raise ValueError(f"{field.name} is {textwrap.shorten(repr(value), 80)}, and not a value of type {names}")
    return instance


def strings(name: str, value: Any) -> tuple[str, ...]:
    """A tuple of distinct strings from one string or several.

    Raises:
        ValueError: If it is anything else.
    """
    values = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (None,)
    if not all(isinstance(item, str) for item in values):
        raise ValueError(f"{name}={value!r} is not allowed: give a list of strings, or leave it out.")
    return tuple(dict.fromkeys(values))


def plain(value: Any) -> Any:
    """A value in the form that JSON has for it."""
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value


def describe_fields(dataclass: type) -> str:
    """The `Args` part of a docstring, from the help texts of the fields."""
    lines = []
    for field in dataclasses.fields(dataclass):
        legal = field.metadata.get("legal")
        kind = field.type.__name__ if isinstance(field.type, type) else str(field.type)
        if legal is not None:
            kind = f"{legal} | None" if field.default is None else str(legal)
        text = f"{field.name} (`{kind}`, defaults to `{field.default!r}`): {field.metadata['help']}"
        lines += textwrap.wrap(text, 112, initial_indent=" " * 8, subsequent_indent=" " * 12)
    return "\n".join(lines)


def activity_key(activation: str, threshold: float) -> str:
    """Name under which statistics keep the counts of one kind of activity."""
    return activation if activation == "positive" else f"{activation}>{float(threshold)!r}"
