"""Writes the sparsity record: what a pruned model's config says about its pruning, as in `docs/record.md`."""

import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
import transformers

from ..calibration.coverage import ExpertCoverage
from ..calibration.statistics import CalibrationStatistics
from ..configuration import MWandaConfig
from ..modeling.weights import PrunableWeight, Weights
from ..pruning.experts_policy import expert_coverage
from ..pruning.scoring import weigh_languages
from ..pruning.sparsity_plan import SparsityPlan
from ..pruning.tuning import Outcome
from ..utils import portable_name
from ..version import __version__
from .fields import MAX_EXPERT_NAMES, SCHEMA
from .matrices import name_matrices, share_of_zeros
from .parts import RecordedMatrix
from .schema import RECORD_KEY, SparsityRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_MORE_ZEROS = 0.005
"""By how much the share of zeros may exceed what was asked for; where rows are short, it is half a weight per row."""


def build_record(
    model: "PreTrainedModel",
    config: MWandaConfig,
    weights: Weights,
    zeros: Mapping[str, int],
    plan: SparsityPlan,
    statistics: CalibrationStatistics | None,
    fingerprint: str,
    trained: Mapping[str, Outcome] = MappingProxyType({}),
    chosen: Mapping[str, str] = MappingProxyType({}),
) -> SparsityRecord:
    """Describes a pruning that has just been done.

    Args:
        model: The pruned model; its config still holds the record of the previous pruning, if there was one.
        config: Settings of this pruning.
        weights: Module path of a block to the weights that were pruned; only their shapes are used.
        zeros: `PrunableWeight.stored` of each of these weights to its zeros after this pruning.
        plan: Requested sparsity per block.
        statistics: Calibration, with all experts that it covers; gives languages, fingerprints and the tokens of the
            experts.
        fingerprint: `model_fingerprint` of the model before this pruning.
        trained: Module path of each of these blocks to what training it has brought; empty if none was trained.
        chosen: What was found by trying before this pruning, to how.

    Returns:
        The record, for `attach_record`.

    Raises:
        ValueError: If the record would be too large to be read again.
    """
    sizes = {block: sum(weight.numel for weight in found) for block, found in weights.items()}
    counts = {block: name_matrices(found, zeros) for block, found in weights.items()}
    record = {
        "schema": SCHEMA,
        "library_version": __version__,
        "settings": config.to_dict(),
        "pattern": config.pattern,
        **({} if plan.allocation == config.allocation else {"plan": plan.allocation}),
        **({"chosen": dict(chosen)} if chosen else {}),
        "target_sparsity": round(sum(plan[block] * size for block, size in sizes.items()) / sum(sizes.values()), 9),
        "achieved_sparsity": share_of_zeros([matrix for found in counts.values() for matrix in found]),
        "blocks": {
            "names": list(counts),
            "sparsity": [round(share_of_zeros(found), 6) for found in counts.values()],
            **_reconstruction([trained[block] for block in counts] if trained else ()),
        },
        "matrices": _matrices(counts),
        **_calibration(config, statistics),
        "model": portable_name(getattr(model, "name_or_path", "") or ""),
        "model_fingerprint": fingerprint,
        "seed": config.seed,
        "versions": {"torch": str(torch.__version__), "transformers": str(transformers.__version__)},
        "history": _history(getattr(model.config, RECORD_KEY, None)),
    }
    return SparsityRecord.parse(record)


def warn_of_more_zeros(record: SparsityRecord, weights: Sequence[PrunableWeight]) -> None:
    """Warns if a pruned model is sparser than was asked for.

    Args:
        record: Its record.
        weights: What was pruned.
    """
    half_a_weight = 0.5 / min(weight.in_features for weight in weights)
    if record.achieved_sparsity > record.target_sparsity + max(_MORE_ZEROS, half_a_weight):
        logger.warning(
            "%.1f %% of the weights are zero though %.1f %% were asked for: they were zero before, and pruning "
            "makes no weight dense again. For a lower sparsity prune the dense model.",
            100 * record.achieved_sparsity,
            100 * record.target_sparsity,
        )


def _matrices(counts: dict[str, list[RecordedMatrix]]) -> dict[str, Any]:
    """Counts by path inside the block; names and shapes that all blocks share are written once."""
    columns: dict[str, dict[str, RecordedMatrix]] = {}
    for block, found in counts.items():
        for matrix in found:
            columns.setdefault(matrix.path, {})[block] = matrix
    matrices = {}
    for path, column in columns.items():
        shapes = [list(column[block].shape) if block in column else None for block in counts]
        present = [shape for shape in shapes if shape is not None]
        matrices[path] = {
            "shape": present[0] if all(shape == present[0] for shape in present) else shapes,
            "zeros": [column[block].zeros if block in column else None for block in counts],
        }
    return matrices


def _reconstruction(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What training the blocks has brought."""
    if not outcomes:
        return {}
    columns = {
        "epoch": [each.epoch for each in outcomes],
        "before": [_rounded(each.before) for each in outcomes],
        "after": [_rounded(each.after) for each in outcomes],
    }
    return {"reconstruction": columns}


def _rounded(error: float) -> float:
    """To 6 digits."""
    return float(f"{error:.6g}")


def _calibration(config: MWandaConfig, statistics: CalibrationStatistics | None) -> dict[str, Any]:
    """The languages, data and experts that shaped the masks; none if the settings do not use them."""
    if statistics is None or not config.needs_statistics:
        return {"languages": {}, "dataset_fingerprints": []}
    weights = weigh_languages(config, statistics.tokens).tolist()
    languages = {
        language: {"tokens": tokens, "weight": round(weight, 9)}
        for (language, tokens), weight in zip(statistics.tokens.items(), weights, strict=True)
    }
    found: dict[str, Any] = {"languages": languages, "dataset_fingerprints": [statistics.fingerprint]}
    if statistics.experts:
        found["experts"] = _experts(config, expert_coverage(statistics, config))
    return found


def _experts(config: MWandaConfig, coverage: ExpertCoverage) -> dict[str, Any]:
    """How calibration reached the experts of a mixture."""
    return {
        "policy": config.experts_policy,
        "wanted": coverage.wanted,
        "count": len(coverage.tokens),
        "lacking": len(coverage.lacking),
        "names": list(coverage.lacking[:MAX_EXPERT_NAMES]),
        "fewest": coverage.fewest,
        "unreached": {language: len(names) for language, names in coverage.unreached.items()},
    }


def _history(previous: Any) -> list[dict[str, Any]]:
    """The earlier prunings of a model, including the last one."""
    if previous is None:
        return []
    try:
        return SparsityRecord.parse(previous).next_history()
    except ValueError as error:
        logger.warning("The model's earlier sparsity record is not carried into the history of the new one: %s", error)
        return []
