"""What a comparison runs, checked once."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ...configuration import MWandaConfig
from ...registry import ALLOCATIONS
from ...values import check_number
from .conditions import Condition, make_conditions
from .methods import BY_THE_PLAN, SPARSITIES, Methods, expand, plan_of

if TYPE_CHECKING:
    from ...pruning.sparsity_plan import SparsityPlan


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
    """Every method, at every sparsity and pattern, after every calibration, with every seed.

    Attributes:
        methods: Name to settings.
        sparsities: Shares of the weights to remove.
        patterns: N:M patterns, which fix their own sparsity.
        seeds: Seeds for choosing calibration rows.
        languages: Languages to calibrate on; None for all that have enough calibration text.
        rotate: Number of folds that each leave out another part of these languages; None to calibrate on all of them.
        only: Languages to also calibrate on alone, with as many tokens.
        samples_per_language: Calibration chunks per language.
        sequence_length: Tokens per chunk, and per evaluation window.
        tokens_per_language: Most tokens to evaluate per language.
        settings: Settings for every method; its own settings override them.

    Raises:
        ValueError: If something is not allowed; the message says what.
    """

    methods: Methods
    sparsities: Sequence[float] = SPARSITIES
    patterns: Sequence[str] = ()
    seeds: Sequence[int] = (0,)
    languages: Sequence[str] | None = None
    rotate: int | None = None
    only: Sequence[str] = ()
    samples_per_language: int = 12
    sequence_length: int = 256
    tokens_per_language: int = 2048
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("seeds", "sparsities", "patterns", "languages", "only"):
            values = getattr(self, name) or ()
            if len(set(values)) < len(values):
                raise ValueError(f"{name}={values!r} names a value twice: give each one once.")
        if taken := [name for name in self.settings if name in BY_THE_PLAN]:
            raise ValueError(
                f"settings={dict(self.settings)!r} holds {taken[0]!r}, which the comparison sets itself: leave it out."
            )
        for name, minimum in (("samples_per_language", 1), ("sequence_length", 2), ("tokens_per_language", 2)):
            is_legal = partial(_is_count, minimum)
            check_number(name, getattr(self, name), is_legal, f"a whole number of at least {minimum}")
        if not self.seeds or not self.grid():
            raise ValueError("There is nothing to run: give a method, a sparsity or pattern that fits it, and a seed.")
        self.calibration(self.seeds[0])
        if self.languages is not None:
            self.conditions(self.languages)

    def calibration(self, seed: int, condition: Condition | None = None) -> MWandaConfig:
        """Settings that read the calibration text of a condition, or of all languages.

        Whether a method can use sensitivities is said by its own settings, and not by those that all share.
        """
        shared = {name: value for name, value in self.settings.items() if name != "sensitivity"}
        return MWandaConfig.from_dict({**shared, **self._drawn(seed, condition)})

    def grid(self) -> list[tuple[str, MWandaConfig]]:
        """Name and settings of every method at every sparsity and pattern, without languages and seed."""
        return list(expand(self.methods, self.sparsities, self.patterns, self.settings))

    def conditions(self, languages: Sequence[str]) -> list[Condition]:
        """The calibrations to compare, among these languages."""
        return make_conditions(languages, self.samples_per_language, self.rotate, self.only)

    def plan_of(self, name: str, config: MWandaConfig) -> "SparsityPlan | None":
        """The plan that a method has for a run, if it has one."""
        return plan_of(self.methods[name], config.target_sparsity)

    def runs(self, seed: int, condition: Condition) -> list[tuple[str, MWandaConfig]]:
        """Name and settings of every run of a condition; with one language, methods that compare are left out."""
        runs = expand(self.methods, self.sparsities, self.patterns, {**self.settings, **self._drawn(seed, condition)})
        return [each for each in runs if not _compares(each[1]) or len(condition.languages) > 1]

    def _drawn(self, seed: int, condition: Condition | None) -> dict[str, Any]:
        samples = self.samples_per_language if condition is None else condition.samples_per_language
        return {
            "seed": seed,
            "sequence_length": self.sequence_length,
            "samples_per_language": samples,
            "languages": self.languages if condition is None else condition.languages,
        }


def _is_count(minimum: int, value: Any) -> bool:
    return isinstance(value, int) and value >= minimum


def _compares(config: MWandaConfig) -> bool:
    return ALLOCATIONS[str(config.allocation)].compares_languages or config.finds_regularisation
