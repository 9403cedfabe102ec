"""Fonts for names in any script."""

import contextlib
import functools
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

_PLACEHOLDERS = "Last Resort"
"""A font with a box for every character, which says nothing."""


def cover(figure: "Figure") -> None:
    """Gives every text of a figure fonts that have its characters, as far as some are installed."""
    from matplotlib import font_manager
    from matplotlib.text import Text

    texts: list[Text] = list(figure.findobj(Text))
    default = font_manager.get_font(font_manager.findfont(font_manager.FontProperties())).get_charmap()

    def foreign(text: Text) -> set[str]:
        return {sign for sign in text.get_text() if not sign.isspace() and ord(sign) not in default}

    if missing := set().union(*map(foreign, texts)):
        families = _families_with(frozenset(missing))
        for text in texts:
            if foreign(text):
                text.set_fontfamily(list(dict.fromkeys([*text.get_fontfamily(), *families])))


@functools.cache
def _families_with(characters: frozenset[str]) -> tuple[str, ...]:
    """Installed font families that have some characters, Noto first; warns of characters that none has."""
    from matplotlib import font_manager

    _add_new_fonts()
    left, found = set(characters), []
    entries = {entry.name: entry.fname for entry in reversed(font_manager.fontManager.ttflist)}
    for name in sorted(entries, key=lambda name: (not name.startswith("Noto Sans"), name)):
        if not left:
            break
        if _PLACEHOLDERS in name:
            continue
        has = font_manager.get_font(entries[name]).get_charmap()
        if covered := {sign for sign in left if ord(sign) in has}:
            found.append(name)
            left -= covered
    if left:
        logger.warning(
            "No installed font has %s, so pictures show boxes in their place: install one that does, for example the "
            "Noto fonts.",
            " ".join(sorted(left)),
        )
    return tuple(found)


def _add_new_fonts() -> None:
    """Tells matplotlib of fonts that were installed after it had listed them in its cache."""
    from matplotlib import font_manager

    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    for path in font_manager.findSystemFonts():
        if path not in known:
            with contextlib.suppress(OSError, RuntimeError, ValueError):  # a file that is no font that it can read
                font_manager.fontManager.addfont(path)
