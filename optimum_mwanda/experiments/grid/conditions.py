"""Which languages each calibration reads, so that others are unseen."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence

from ...configuration import MWandaConfig
from ...values import is_self_written


@dataclasses.dataclass(frozen=True)
class Condition:
    """The languages of one calibration.

    Attributes:
        name: Name in tables; the folds of a rotation share it.
        languages: Languages to calibrate on.
        samples_per_language: Chunks per language.
        fold: Which part of a rotation, and of how many; None outside one.
    """

    name: str
    languages: tuple[str, ...]
    samples_per_language: int
    fold: tuple[int, int] | None = None


def make_conditions(
    languages: Sequence[str], samples_per_language: int, rotate: int | None = None, only: Sequence[str] = ()
) -> list[Condition]:
    """The calibrations to compare.

    Args:
        languages: All languages to choose from.
        samples_per_language: Chunks per language.
        rotate: Number of folds: each leaves out another part of the languages, so that every language is unseen in one
            fold and seen in the others. Text that the model wrote itself is in all of them. None to calibrate on all
            languages.
        only: Languages to also calibrate on alone, each with as many chunks as all languages together, so that the
            number of tokens does not differ.

    Raises:
        ValueError: If a rotation would leave out every language or none, or `only` names another language.
    """
    if unknown := [each for each in only if each not in languages]:
        raise ValueError(f"only={unknown[0]!r} is not among the calibration languages: {', '.join(languages)}.")
    if rotate is None:
        found = [Condition("multilingual", tuple(languages), samples_per_language)]
    else:
        rotated = [each for each in languages if not is_self_written(each)]
        if not 2 <= rotate <= len(rotated):
            raise ValueError(
                f"rotate={rotate} is not allowed: give at least 2 and at most {len(rotated)}, the number of languages."
            )
        name = f"rotation of {rotate}"
        found = []
        for fold in range(rotate):
            seen = tuple(each for each in languages if each not in rotated[fold::rotate])
            found.append(Condition(name, seen, samples_per_language, (fold, rotate)))
    alone = [Condition(f"only {each}", (each,), samples_per_language * len(languages)) for each in only]
    return found + alone


def weigh_seen(config: MWandaConfig, condition: Condition, languages: Collection[str]) -> MWandaConfig:
    """The settings of a run without weights of languages that its condition leaves out.

    Args:
        config: The settings.
        condition: What the run calibrates on.
        languages: All languages of the comparison; a weight of another one is a mistake, and stays to be found.
    """
    rule = config.language_weights
    if not isinstance(rule, Mapping):
        return config
    kept = {name: weight for name, weight in rule.items() if name in condition.languages or name not in languages}
    return config if kept == rule else config.replace(language_weights=kept or "equal")
