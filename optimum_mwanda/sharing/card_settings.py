"""Which settings had a say in a pruning: a card lists no others."""

from collections.abc import Callable
from typing import Any

from ..configuration import MWandaConfig
from ..record.schema import SparsityRecord
from ..registry import CRITERIA

Condition = Callable[[MWandaConfig], bool]

_OWN_FORMULAS = ("magnitude", "wanda", "ria", "mwanda", "sparsegpt", "alps")


def _is_mwanda(config: MWandaConfig) -> bool:
    return config.criterion == "mwanda"


def _varies(config: MWandaConfig) -> bool:
    return _is_mwanda(config) and config.variance != "none"


def _counts(config: MWandaConfig) -> bool:
    return _is_mwanda(config) and config.activation != "none"


def _allocates(config: MWandaConfig) -> bool:
    return config.allocation != "uniform"


def _refines(config: MWandaConfig) -> bool:
    return config.swaps


def _reads_text(config: MWandaConfig) -> bool:
    return config.needs_statistics


_CONDITIONS: dict[str, Condition] = {
    "base": _is_mwanda,
    "ria_exponent": lambda config: config.criterion == "ria" or (_is_mwanda(config) and config.base == "ria"),
    "variance": _is_mwanda,
    "variance_weight": _varies,
    "activation": _is_mwanda,
    "activation_threshold": lambda config: _counts(config) and config.activation == "above_rms",
    "activation_exponent": _counts,
    # By default a solver chooses within rows, and a pattern within its runs.
    "group": lambda config: (
        config.kept_of is None and (config.group == "matrix" or not CRITERIA[config.criterion].updates)
    ),
    "allocation": lambda config: config.kept_of is None,
    "allocation_strength": _allocates,
    "cwl_direction": lambda config: config.allocation == "cwl",
    "owl_multiplier": lambda config: config.allocation in ("owl", "outliers"),
    "min_block_sparsity": _allocates,
    "max_block_sparsity": _allocates,
    "language_temperature": lambda config: _reads_text(config) and config.language_weights == "temperature",
    **dict.fromkeys(("minimax_rounds", "minimax_bound"), lambda config: config.finds_weights),
    "reservoir": lambda config: _reads_text(config) and config.reservoir is not None,
    "calibration_tolerance": lambda config: _reads_text(config) and config.calibration_tolerance is not None,
    "refinement": lambda config: not CRITERIA[config.criterion].updates,
    "refinement_shrinkage": _refines,
    "refinement_ridge": _refines,
    "sensitivity": lambda config: config.sensitivity != "none",
    "sensitivity_exponent": lambda config: config.weighs_rows,
    **dict.fromkeys(("damping", "reconstruction_shrinkage"), lambda config: config.updates_matrices),
    "tune_regularisation": lambda config: config.finds_regularisation,
    "refinement_reach": lambda config: config.trains_masks,
    "reconstruction_learning_rate": lambda config: config.trains_values,
    "reconstruction_blocks": lambda config: config.trains_blocks and config.reconstruction_blocks > 1,
    **dict.fromkeys(
        ("reconstruction_region", "reconstruction_epochs", "reconstruction_batch_size", "reconstruction_held_out"),
        lambda config: config.trains_blocks,
    ),
    **dict.fromkeys(
        (
            *("language_column", "text_column", "target_column", "languages", "language_weights"),
            *("samples_per_language", "sequence_length", "bos", "batch_size", "calibration", "seed"),
        ),
        _reads_text,
    ),
}


def settings_that_apply(config: MWandaConfig, record: SparsityRecord) -> dict[str, Any]:
    """The settings that shaped a pruning; without the others the result is the same.

    Args:
        config: All settings.
        record: What was pruned with them.

    Returns:
        Name to value, in the order of the config. All of them for a criterion of a plugin, which may read any.
    """
    found = config.to_dict()
    if config.criterion not in _OWN_FORMULAS:
        return found
    reached = record.experts is None or not record.experts.lacking
    conditions = _CONDITIONS | dict.fromkeys(("experts_policy", "min_expert_tokens"), lambda _: not reached)
    return {name: value for name, value in found.items() if name not in conditions or conditions[name](config)}
