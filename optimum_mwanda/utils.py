"""Small helpers that several rooms need."""

import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table with aligned columns; the first column is left-aligned, the others right-aligned."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return f"| {' | '.join([first, *rest])} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), f"| {' | '.join(rule)} |", *(line(row) for row in cells)])


def abridged(names: Iterable[str], max_names: int = 8) -> str:
    """The first of some names, and how many more there are."""
    known = list(names)
    more = len(known) - max_names
    return ", ".join(known[:max_names]) + (f" and {more} more" if more > 0 else "")


def progress_bar(
    items: Iterable[T], *, total: int | Callable[[], int | None], description: str, show: bool
) -> Generator[T, None, None]:
    """Iterates with a progress bar on standard error, or silently; how many items there are may become known late."""
    from tqdm.auto import tqdm

    count = total if callable(total) else lambda: total
    with tqdm(items, total=count(), desc=description, disable=not show) as bar, closing(iter(bar)) as counted:
        for item in counted:
            bar.total = count() if bar.total is None else bar.total
            yield item


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it, the first cause last."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def sum_dtype(device: "torch.device") -> "torch.dtype":
    """The widest floating-point type in which a device can sum."""
    import torch

    return torch.float32 if device.type == "mps" else torch.float64


def as_percent(share: float | None) -> str:
    """A share in percent with one decimal; nothing for one that is not known."""
    return "" if share is None else f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """A time as people say it, to two units: 12 s, 3 min 20 s, 2 h 5 min."""
    whole = max(round(seconds), 1)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def portable_name(name: str) -> str:
    """What a model or a dataset is called in anything that may leave the machine.

    Of a local path only the last part: the folders of a machine are private. A folder in the cache of the Hub is called
    after a commit, so its repository is named. A repository id stays as it is.
    """
    parts = name.replace("\\", "/").rstrip("/")
    if cached := re.search(r"(?:^|/)(?:models|datasets)--([^/]+)/snapshots/[^/]+(?:/|$)", parts):
        return cached[1].replace("--", "/")
    if name and os.path.isdir(name):
        return os.path.basename(os.path.abspath(name))
    is_path = os.path.isabs(name) or name.startswith((".", "~")) or "\\" in name or name.count("/") > 1
    return PurePath(parts).name if is_path else name
