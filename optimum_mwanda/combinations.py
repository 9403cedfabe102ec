"""Which settings do not go together."""

from typing import Any

from .registry import CRITERIA


def check_combinations(config: Any) -> None:
    """Checks settings that are legal one by one.

    Args:
        config: An `MWandaConfig` in which everything that others imply is filled in.

    Raises:
        ValueError: If two of them contradict each other, or one has no effect because of the others.
    """
    if CRITERIA[config.criterion].updates and (config.reconstruction == "none" or config.refinement != "none"):
        raise ValueError(
            f"criterion={config.criterion!r} chooses masks while it updates weights: leave reconstruction and "
            "refinement out, or choose another criterion."
        )
    _check_bounds(config)
    if config.trains_blocks and config.calibration != "sequential":
        raise ValueError(
            f"refinement={config.refinement!r} with reconstruction={config.reconstruction!r} trains each block on the "
            "outputs of its pruned predecessors: leave calibration out, or give calibration='sequential'."
        )
    if config.reconstruction_region != "block" and config.reconstruction_blocks > 1:
        raise ValueError(
            f"reconstruction_blocks={config.reconstruction_blocks!r} cannot be combined with reconstruction_region="
            f"{config.reconstruction_region!r}, which trains parts of one block: leave one of them out."
        )
    if config.trains_masks and config.updates_matrices:
        raise ValueError(
            f"refinement={config.refinement!r} chooses masks for the values that the dense model has, and "
            f"reconstruction={config.reconstruction!r} changes values before: give reconstruction='block', which "
            "changes them afterwards, or refinement='swap'."
        )
    if config.calibration_tolerance is not None and (
        config.language_weights == "minimax" or config.tune_regularisation
    ):
        raise ValueError(
            f"calibration_tolerance={config.calibration_tolerance!r} cannot be combined with "
            "language_weights='minimax' or tune_regularisation, which read all text: find these settings first, and "
            "give what was found."
        )
    if config.calibration_tolerance is not None and config.language_weights in ("proportional", "temperature"):
        raise ValueError(
            f"calibration_tolerance={config.calibration_tolerance!r} cannot be combined with "
            f"language_weights={config.language_weights!r}, which would weigh languages by how late they settle: give "
            "'equal', or the weights themselves."
        )
    if config.sensitivity != "none":
        _check_sensitivity(config)
        if config.language_weights == "minimax" or config.tune_regularisation:
            raise ValueError(
                f"sensitivity={config.sensitivity!r} cannot be combined with language_weights='minimax' or "
                "tune_regularisation, which try prunings without sensitivities: find these settings first, and give "
                "what was found."
            )


def _check_bounds(config: Any) -> None:
    low, high = config.min_block_sparsity, config.max_block_sparsity
    if config.allocation != "uniform" and not low <= config.target_sparsity <= high:
        raise ValueError(
            f"sparsity={config.sparsity!r} cannot be reached with block sparsities in [{low:g}, {high:g}]: widen "
            "min_block_sparsity and max_block_sparsity, or set allocation='uniform'."
        )


def _check_sensitivity(config: Any) -> None:
    criterion = CRITERIA[config.criterion]
    if config.weighs_outputs and not config.weighs_rows:
        return
    if criterion.updates and not criterion.weighs_rows:
        able = " or ".join(repr(name) for name, each in CRITERIA.items() if each.weighs_rows)
        raise ValueError(
            f"sensitivity={config.sensitivity!r} cannot be used by criterion={config.criterion!r}, which takes no "
            f"sensitivities of rows: choose a score or {able}, give group='row' and reconstruction='block', or "
            "sensitivity='none'."
        )
    if not config.weighs_rows and not config.couples_rows:
        has_pattern, solves = config.kept_of is not None, criterion.updates
        reason = f"pattern={config.pattern!r}" if has_pattern else f"group={config.group!r}"
        ways = [*([] if has_pattern else ["group='matrix'"]), *([] if solves else ["refinement='swap'"])]
        raise ValueError(
            f"sensitivity={config.sensitivity!r} has no effect with {reason} and refinement={config.refinement!r}, as "
            "weights compete within a row and blocks are not trained: give "
            f"{', '.join([*ways, ''])}reconstruction='block' or sensitivity='none'."
        )
