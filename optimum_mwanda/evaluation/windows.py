"""From the losses of windows to the score of a language."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from .scores import LanguageScore, Windows


class Window(NamedTuple):
    """The loss over a window, in nats, and the tokens that it predicts."""

    nll: float
    targets: list[int]


def score_windows(
    language: str,
    measured: Sequence[Window],
    sizes: Sequence[int] | None,
    min_targets: float,
    digest: str,
    unknown: int | None,
) -> LanguageScore:
    """The score of a language.

    Args:
        language: Its name.
        measured: Its windows, in the order of the text.
        sizes: UTF-8 length of the text of each; None if unknown.
        min_targets: Windows with fewer targets are joined to others.
        digest: SHA-256 of everything in them.
        unknown: How many targets are unknown to the tokenizer.
    """
    nll = [window.nll for window in measured]
    counts = [len(window.targets) for window in measured]
    parts = _join_small(counts, [1] * len(counts) if sizes is None else sizes, min_targets)
    windows = Windows(
        tuple(math.fsum(nll[part]) for part in parts),
        tuple(sum(counts[part]) for part in parts),
        None if sizes is None else tuple(sum(sizes[part]) for part in parts),
    )
    total = None if sizes is None else sum(sizes)
    return LanguageScore(language, sum(counts), math.fsum(nll) / sum(counts), total, windows, digest, unknown)


def _join_small(counts: Sequence[int], sizes: Sequence[int], min_targets: float) -> list[slice]:
    """Groups consecutive windows so that each group has `min_targets` targets and a byte, if there are as many at all.

    Windows without tokens or bytes give no figure per token or byte when resampled.
    """

    def is_small(part: slice) -> bool:
        return sum(counts[part]) < min_targets or not any(sizes[part])

    parts: list[slice] = []
    for index in range(len(counts)):
        if parts and is_small(parts[-1]):
            parts[-1] = slice(parts[-1].start, index + 1)
        else:
            parts.append(slice(index, index + 1))
    if len(parts) > 1 and is_small(parts[-1]):
        parts[-2:] = [slice(parts[-2].start, len(counts))]
    return parts
