"""How well a model predicts one language, and how sure that is."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..values import check_types
from .bootstrap import Array, resampled_sums


@dataclasses.dataclass(frozen=True)
class Windows:
    """What was measured on each window of a language's text, in the order of the text.

    Attributes:
        nll: Sums of the negative log-likelihood, in nats.
        tokens: Predicted tokens.
        bytes: UTF-8 length of the text; adds up to that of the language; None if only token ids were given.
    """

    nll: tuple[float, ...]
    tokens: tuple[int, ...]
    bytes: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class LanguageScore:
    """How well a model predicts the text of one language.

    Attributes:
        language: Code, as the dataset gives it.
        tokens: Predicted tokens; special tokens are not counted, but for those that stand for unknown text.
        nll: Mean negative log-likelihood per token, in nats.
        bytes: UTF-8 length of the text; None if only token ids were given.
        windows: The same figures per window, to resample; None if they were not kept.
        digest: SHA-256 of the token ids that the model read; None in reports of old versions.
        unknown: Those of the predicted tokens that stand for text which the tokenizer does not know; None if that is
            not known.
    """

    language: str
    tokens: int
    nll: float
    bytes: int | None = None
    windows: Windows | None = None
    digest: str | None = None
    unknown: int | None = None

    @property
    def unknown_share(self) -> float | None:
        """Which share of the predicted tokens is unknown to the tokenizer."""
        return None if self.unknown is None else self.unknown / self.tokens

    @property
    def perplexity(self) -> float:
        """`exp(nll)`, per token: comparable between models with one tokenizer, not between languages."""
        return math.exp(min(self.nll, 700.0))

    @property
    def bits_per_byte(self) -> float | None:
        """`nll · tokens / (ln 2 · bytes)`: comparable between tokenizers; None without text."""
        return None if not self.bytes else self.nll * self.tokens / (math.log(2) * self.bytes)

    def is_on_the_text_of(self, other: "LanguageScore") -> bool:
        """Whether both scores agree in all that is known of their text: tokens, lengths overall and per window."""
        known: list[tuple[Any, Any]] = [
            (self.digest, other.digest),
            (self.tokens, other.tokens),
            (self.bytes, other.bytes),
        ]
        if self.windows is not None and other.windows is not None:
            known += [(self.windows.tokens, other.windows.tokens), (self.windows.bytes, other.windows.bytes)]
        return all(mine == theirs or None in (mine, theirs) for mine, theirs in known)

    @property
    def can_be_resampled(self) -> bool:
        """Whether there are at least two windows; a single one tells nothing about variation."""
        return self.windows is not None and len(self.windows.nll) > 1

    @functools.cached_property
    def standard_errors(self) -> dict[str, float | None]:
        """Standard errors of `nll`, `perplexity` and `bits_per_byte` by bootstrap over windows; None where unknown."""
        windows = self.windows
        if windows is None or not self.can_be_resampled:
            return {"nll": None, "perplexity": None, "bits_per_byte": None}
        nll, tokens, bytes = self.resample(windows.nll, windows.tokens, windows.bytes or windows.tokens)
        return {
            "nll": float(np.std(nll / tokens)),
            # Relative to the estimate, so that the square of a huge perplexity does not overflow.
            "perplexity": self.perplexity * float(np.std(np.exp(nll / tokens - self.nll))),
            "bits_per_byte": None if windows.bytes is None else float(np.std(nll / bytes)) / math.log(2),
        }

    def resample(self, *columns: tuple[float, ...]) -> Array:
        """Sums over resampled windows, (columns, resamples); a language always draws the same windows.

        Args:
            columns: Sums per window, as in `windows`.
        """
        return resampled_sums(np.array(columns, dtype=np.float64).T, self.language).T

    def to_dict(self) -> dict[str, Any]:
        """The score as plain JSON values, derived figures included."""
        return {
            "language": self.language,
            "tokens": self.tokens,
            "nll": self.nll,
            "bytes": self.bytes,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "standard_errors": self.standard_errors,
            "windows": None if self.windows is None else dataclasses.asdict(self.windows, dict_factory=_lists),
            "digest": self.digest,
            "unknown": self.unknown,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LanguageScore":
        """Inverse of `to_dict`; `windows`, `digest` and `unknown` may be missing, as in older reports."""
        kept = values.get("windows")
        windows = None
        if kept is not None:
            bytes = kept["bytes"]
            windows = Windows(tuple(kept["nll"]), tuple(kept["tokens"]), None if bytes is None else tuple(bytes))
        later = {name: values.get(name) for name in ("digest", "unknown")}
        return check_types(cls(values["language"], values["tokens"], values["nll"], values["bytes"], windows, **later))


def _lists(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Turns tuples into lists, as JSON does."""
    return {name: None if value is None else list(value) for name, value in fields}
