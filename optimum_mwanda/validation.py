"""What each setting of `MWandaConfig` may be."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .values import check_number, is_number

if TYPE_CHECKING:
    from .configuration import MWandaConfig

CHOICES: dict[str, tuple[str, ...]] = {
    "criterion": ("magnitude", "wanda", "ria", "mwanda", "sparsegpt", "alps"),
    "base": ("wanda", "ria"),
    "variance": ("none", "std", "variance", "relative_variance"),
    "activation": ("none", "positive", "above_rms"),
    "group": ("row", "matrix"),
    "allocation": ("uniform", "owl", "cwl", "dlp", "alpha"),
    "cwl_direction": ("shared", "specific"),
    "calibration": ("dense", "sequential"),
    "refinement": ("none", "swap"),
    "reconstruction": ("none", "obs"),
    "experts_policy": ("magnitude", "shared", "skip", "error"),
}
WEIGHTINGS = ("equal", "proportional", "temperature")
UPDATING = ("sparsegpt", "alps")
"""Criteria that choose the mask and the new values of the weights together."""


def check_choices(config: "MWandaConfig") -> None:
    """Checks every setting with a list of legal values, and the names of columns.

    Raises:
        ValueError: If a value is not among them, or no string.
    """
    for name in ("language_column", "text_column", "target_column"):
        value = getattr(config, name)
        if not isinstance(value, str):
            raise ValueError(f"{name}={value!r} is not allowed: give a string.")
    for name, allowed in CHOICES.items():
        value = getattr(config, name)
        if value not in allowed and not (value is None and name in ("allocation", "calibration", "reconstruction")):
            raise ValueError(f"{name}={value!r} is not known. Choose one of: {', '.join(map(repr, allowed))}.")


def check_numbers(config: "MWandaConfig") -> None:
    """Checks every number.

    Raises:
        ValueError: If one is out of its range, or the sparsity out of reach.
    """
    if not is_number(config.sparsity) or not 0 <= config.target_sparsity < 1:
        raise ValueError(
            f"sparsity={config.sparsity!r} is not allowed: give a share of the weights in [0, 1), 0.5 for 50 %."
        )
    for name in (
        "ria_exponent",
        "variance_weight",
        "activation_threshold",
        "activation_exponent",
        "allocation_strength",
        "refinement_ridge",
        "damping",
    ):
        check_number(name, getattr(config, name), lambda value: value >= 0, "a number that is not negative")
    for name in ("owl_multiplier", "language_temperature"):
        check_number(name, getattr(config, name), lambda value: value > 0, "a number above 0")
    for name in ("samples_per_language", "batch_size", "sequence_length", "min_expert_tokens"):
        if not (name == "sequence_length" and config.sequence_length is None):
            check_number(
                name,
                getattr(config, name),
                lambda value: isinstance(value, int) and value >= 1,
                "a whole number of at least 1",
            )
    check_number(
        "seed", config.seed, lambda value: isinstance(value, int) and value >= 0, "a whole number of at least 0"
    )
    for name in ("min_block_sparsity", "max_block_sparsity", "refinement_shrinkage"):
        check_number(name, getattr(config, name), lambda value: 0 <= value <= 1, "a share in [0, 1]")
    if config.allocation != "uniform" and not (
        config.min_block_sparsity <= config.target_sparsity <= config.max_block_sparsity
    ):
        raise ValueError(
            f"sparsity={config.sparsity!r} cannot be reached with block sparsities in [{config.min_block_sparsity:g}, "
            f"{config.max_block_sparsity:g}]: widen min_block_sparsity and max_block_sparsity, or set "
            "allocation='uniform'."
        )


def check_language_weights(config: "MWandaConfig") -> None:
    """Checks the rule or the numbers by which languages count.

    Raises:
        ValueError: If they are not allowed.
    """
    weights = config.language_weights
    if isinstance(weights, str):
        if weights not in WEIGHTINGS:
            raise ValueError(
                f"language_weights={weights!r} is not known. Choose one of: {', '.join(map(repr, WEIGHTINGS))}, "
                "or give a dict of language to weight."
            )
        return
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(f"language_weights={weights!r}: give a name or a dict of language to weight.")
    for language, weight in weights.items():
        if not isinstance(language, str) or not is_number(weight) or weight < 0:
            raise ValueError(
                f"language_weights[{language!r}]={weight!r} is not allowed: weights are numbers that are not "
                "negative, keyed by language code."
            )
