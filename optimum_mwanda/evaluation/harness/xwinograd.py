"""Rows of XWinograd (Tikhonov and Ryabinin 2021) as fill-in-the-blank questions."""

import json
from collections.abc import Sequence


def with_blank(row: Sequence[str]) -> dict[str, str]:
    """Turns a row of the file into the form that the harness expects.

    Args:
        row: Language, source, English original, sentence, and as JSON: its tokens, the pronoun and the two candidates,
            each with the range of its tokens; a candidate also says whether it is correct.

    Returns:
        `sentence` with `_` for the pronoun, `option1`, `option2`, and `answer`, which is "1" or "2".

    Raises:
        IndexError: If columns are missing.
        KeyError: If the tokens of the pronoun are not in the sentence.
        ValueError: If the pronoun is not where its tokens are, or not exactly one candidate is correct.
    """
    sentence, tokens, pronoun, candidates = row[3], *map(json.loads, row[4:7])
    start, end = _span(sentence, tokens, *pronoun[1])
    if sentence[start:end] != pronoun[0]:
        raise ValueError(f"the pronoun {pronoun[0]!r} is not where its tokens are.")
    (option1, *_, is_first), (option2, *_, is_second) = candidates
    if is_first == is_second:
        raise ValueError("exactly one of its two candidates must be correct.")
    return {
        "sentence": f"{sentence[:start]}_{sentence[end:]}",
        "option1": option1,
        "option2": option2,
        "answer": "1" if is_first else "2",
    }


def _span(sentence: str, tokens: Sequence[str], first: int, last: int) -> tuple[int, int]:
    """Where the tokens `first` to `last - 1` stand in their sentence, in characters.

    The tokenizer that made the file rewrote quotation marks; such tokens are not in the sentence and are skipped.
    """
    spans, position = {}, 0
    for index, token in enumerate(map(str.strip, tokens)):
        start = sentence.find(token, position)
        if start >= 0:
            position = start + len(token)
            spans[index] = (start, position)
    return spans[first][0], spans[last - 1][1]
