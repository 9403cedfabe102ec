"""Which experts of a mixture the calibration reached, and with how many tokens per language."""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..utils import abridged

_NAMED = 20


@dataclasses.dataclass(frozen=True)
class ExpertCoverage:
    """Calibration tokens that were routed to each expert; `print` shows the gaps.

    Attributes:
        tokens: Expert to its tokens per language, shape `(languages,)`.
        languages: Languages, in the order of the counts.
        wanted: An expert with fewer tokens counts as not calibrated.
    """

    tokens: Mapping[str, Tensor]
    languages: Sequence[str]
    wanted: int = 1

    @property
    def lacking(self) -> tuple[str, ...]:
        """Experts reached by fewer than the wanted tokens, all languages together."""
        return tuple(name for name, tokens in self.tokens.items() if tokens.sum() < self.wanted)

    @property
    def fewest(self) -> int:
        """Fewest tokens of any language in any expert."""
        return min((int(tokens.min()) for tokens in self.tokens.values()), default=0)

    @property
    def unreached(self) -> dict[str, tuple[str, ...]]:
        """Language to the experts that none of its tokens reached; languages that reach all experts are left out."""
        names, gaps = [*self.tokens], {}
        missed = torch.stack([*self.tokens.values()]) == 0 if names else torch.zeros(0, len(self.languages))
        for language, column in zip(self.languages, missed.T, strict=True):
            if found := column.nonzero().flatten().tolist():
                gaps[language] = tuple(names[index] for index in found)
        return gaps

    def __str__(self) -> str:
        everything = torch.stack(list(self.tokens.values())).sum(1)
        lines = [
            f"{len(self.tokens)} experts, reached by {int(everything.min()):,} to {int(everything.max()):,} tokens "
            f"each; fewest of one language in one expert: {self.fewest:,}."
        ]
        if self.lacking:
            lines.append(
                f"{len(self.lacking)} experts with fewer than {self.wanted:,} tokens: {abridged(self.lacking, 4)}."
            )
        unreached = self.unreached
        for language, names in [*unreached.items()][:_NAMED]:
            lines.append(
                f"{language!r} does not reach {len(names)} of {len(self.tokens)} experts: {abridged(names, 4)}."
            )
        if len(unreached) > _NAMED:
            lines.append(f"{len(unreached) - _NAMED} more languages do not reach every expert: see unreached.")
        return "\n".join(lines)
