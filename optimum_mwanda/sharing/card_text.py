"""Text of a model card: fills the template so that no string of a record can act as Markdown, HTML or Jinja."""

import functools
import importlib.resources
import json
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from ..utils import markdown_table

TEMPLATE = "card.md.jinja"
MAX_CHARACTERS = 300
_ROWS = 60


class Markdown(str):
    """Text that can be put into a card unchanged."""


def clean(value: Any) -> str:
    """One line of visible characters: a line break or a control character could end a code block or a comment."""
    text = "".join(" " if unicodedata.category(sign) in _UNSEEN else sign for sign in str(value)).strip()
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + "…"


def code_span(value: Any) -> Markdown:
    """A string as inline code, where Markdown and HTML have no effect."""
    return Markdown(f"`{clean(value).replace('`', chr(39)) or '–'}`")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Markdown:
    """A Markdown table; every cell that is not Markdown or a number becomes inline code."""
    return Markdown(markdown_table(header, [[_finalize(cell).replace("|", "\\|") for cell in row] for row in rows]))


def folded(text: Markdown) -> Markdown:
    """A table, behind a line to click on if it has many rows."""
    count = sum(line.startswith("|") for line in text.splitlines()) - 2  # without its header
    if count <= _ROWS:
        return text
    return Markdown(f"<details>\n<summary>Show the {count:,} rows</summary>\n\n{text}\n\n</details>")


def literal(value: Any) -> Markdown:
    """A plain value as a Python literal on one line."""
    if isinstance(value, str):
        return Markdown(json.dumps(clean(value), ensure_ascii=False))
    if isinstance(value, Mapping):
        return Markdown("{" + ", ".join(f"{literal(key)}: {literal(entry)}" for key, entry in value.items()) + "}")
    if isinstance(value, (list, tuple)):
        return Markdown("[" + ", ".join(map(literal, value)) + "]")
    return Markdown(repr(value))


def shell_word(value: Any) -> Markdown:
    """A string as one word of a shell command."""
    return Markdown(shlex.quote(clean(value)))


def percent(share: float) -> Markdown:
    """A share as percent with one decimal."""
    return Markdown(f"{100 * share:.1f} %")


def render(values: Mapping[str, Any]) -> str:
    """Fills the template of the card.

    Values that the template prints become inline code, unless they are numbers or `Markdown`.
    """
    return _template().render(values)


@functools.cache
def _template() -> jinja2.Template:
    """The template: in a wheel it is beside this module, in a source tree in the folder `model_cards`."""
    environment = jinja2.Environment(
        autoescape=False,  # the output is Markdown; `_finalize` escapes
        finalize=_finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(literal=literal, shell=shell_word, folded=folded, percent=percent, plain=Markdown)
    packaged = importlib.resources.files(__package__).joinpath(TEMPLATE)
    source = Path(__file__).parents[2] / "model_cards" / TEMPLATE
    return environment.from_string((packaged if packaged.is_file() else source).read_text(encoding="utf-8"))


_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))


def _finalize(value: Any) -> str:
    is_plain = isinstance(value, (Markdown, int, float)) and not isinstance(value, bool)
    return str(value) if is_plain else code_span(value)
