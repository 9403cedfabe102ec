"""The limits of a search for a sparsity, checked once."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from ...configuration import MWandaConfig
from ...pruning.scoring import weigh_languages
from ...values import FrozenDict, check_number


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """The limit on the degradation, and the settings that the search for the highest sparsity may try.

    Attributes:
        config: Settings of the pruning. The tried sparsities replace its `sparsity`, and `strengths`, if given, its
            `allocation_strength`.
        max_degradation: How much the bits per byte of any language may rise, as a fraction of the dense model's:
            0.05 is 5 %.
        bounds: Lowest and highest sparsity to try.
        resolution: Step between sparsities to try.
        strengths: Allocation strengths (lambda) to try; None for that of `config`.
        protect: Language to a factor that multiplies its weight in calibration.

    Raises:
        ValueError: If a value is not allowed, or `config` leaves nothing to search or to protect.
    """

    config: MWandaConfig
    max_degradation: float
    bounds: tuple[float, float]
    resolution: float
    strengths: Sequence[float] | None
    protect: Mapping[str, float]

    def __post_init__(self) -> None:
        if self.config.kept_of is not None:
            raise ValueError(
                f"pattern={self.config.pattern!r} fixes the sparsity, so there is nothing to search: set "
                "pattern='unstructured'."
            )
        check_number("max_degradation", self.max_degradation, lambda value: 0 <= value <= 1, "a share: 0.05 allows 5 %")
        check_number("resolution", self.resolution, lambda value: 0 < value < 1, "a step between 0 and 1")
        self._check_bounds()
        self._check_strengths()
        self._check_protect()
        for sparsity in self.bounds:
            for strength in self.strengths or (None,):
                self.at(sparsity, strength)  # the config checks everything else

    def _check_bounds(self) -> None:
        if len(self.bounds) != 2:
            raise ValueError(
                f"bounds={self.bounds!r} are not allowed: give the lowest and the highest sparsity to try."
            )
        low, high = self.bounds
        for value in (low, high):
            check_number("bounds", value, lambda value: 0 <= value < 1, "two sparsities in [0, 1)")
        if low >= high:
            raise ValueError(f"bounds={self.bounds!r} are not allowed: give the lower sparsity first.")
        object.__setattr__(self, "bounds", (low, high))

    def _check_strengths(self) -> None:
        if self.strengths is None:
            return
        strengths = tuple(self.strengths)
        if not strengths or len(set(strengths)) < len(strengths):
            raise ValueError(f"strengths={self.strengths!r} are not allowed: give one or more different numbers.")
        if self.config.allocation == "uniform":
            raise ValueError(
                "strengths has no effect with allocation='uniform', which gives all blocks the same sparsity: leave it "
                "out, or choose another allocation."
            )
        object.__setattr__(self, "strengths", strengths)

    def _check_protect(self) -> None:
        for language, factor in self.protect.items():
            check_number(f"protect[{language!r}]", factor, lambda value: value > 0, "a factor above 0")
        if self.protect and not self.config.needs_statistics:
            raise ValueError(
                f"protect has no effect with criterion={self.config.criterion!r} and "
                f"allocation={self.config.allocation!r}, which do not use languages: leave it out, or choose another "
                "criterion."
            )
        object.__setattr__(self, "protect", FrozenDict(self.protect))

    @property
    def sparsities(self) -> list[float]:
        """All sparsities to try: from the lower bound in steps of the resolution, and the upper bound."""
        low, high = self.bounds
        # Rounded, because 0.1 + 0.01 * 21 is 0.31000000000000005.
        steps = math.ceil(round((high - low) / self.resolution, 6))
        return [*(round(low + step * self.resolution, 9) for step in range(steps)), high]

    def at(self, sparsity: float, strength: float | None) -> MWandaConfig:
        """The settings of one trial."""
        changes = {} if strength is None else {"allocation_strength": strength}
        return self.config.replace(sparsity=sparsity, **changes)


def protect_languages(config: MWandaConfig, protect: Mapping[str, float], tokens: Mapping[str, int]) -> MWandaConfig:
    """Settings in which some languages weigh more (or less, with a factor below 1).

    Args:
        config: The settings, with any rule for the weights of languages.
        protect: Language to factor.
        tokens: Language to calibration tokens.

    Returns:
        The settings with explicit weights: those of the rule, scaled to a mean of 1, times the factors.

    Raises:
        ValueError: If a protected language was not calibrated on.
    """
    if unknown := sorted(set(protect) - set(tokens)):
        raise ValueError(f"protect names {', '.join(map(repr, unknown))}, but calibration has: {', '.join(tokens)}.")
    weights: Sequence[float] = weigh_languages(config, dict(tokens)).tolist()
    explicit = {
        language: round(weight * len(tokens) * protect.get(language, 1.0), 9)
        for language, weight in zip(tokens, weights, strict=True)
    }
    return config.replace(language_weights=explicit)
