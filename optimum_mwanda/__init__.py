"""One-shot pruning of multilingual language models that leaves no language behind.

The names below are imported on first use: importing this package imports neither torch nor transformers.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .loading.hooks import install as _install_hooks
from .version import __version__

_HOMES = {
    "CalibrationStatistics": "calibration.statistics",
    "DistillationTrainer": "training.distillation_trainer",
    "FoundWeights": "choosing.worst_language",
    "GradualPruningCallback": "training.pruning_in_training",
    "LISACallback": "training.blocks_in_turn",
    "LanguageCoverage": "data.language_coverage",
    "LostProcessError": "processes.group",
    "LanguageMix": "training.language_mix",
    "MWandaCallback": "training.callback",
    "MWandaConfig": "configuration",
    "MWandaPruner": "pruner",
    "PartiallyPrunedError": "walking.editor",
    "PerplexityComparison": "evaluation.report",
    "PerplexityReport": "evaluation.report",
    "PruningForecast": "loading.forecast",
    "Recovery": "training.recovery",
    "RecoverySettings": "training.recovery_settings",
    "RigLCallback": "training.moving_masks",
    "PlanSearch": "experiments.plans.evolution",
    "SparsityPlan": "pruning.sparsity_plan",
    "SparsityRecord": "record.schema",
    "SparsitySearch": "experiments.search.outcome",
    "SparsityTrial": "experiments.search.outcome",
    "SparsityVerification": "record.verification",
    "check_saved": "storage.read_back",
    "compare": "experiments.side_by_side",
    "compress": "storage.compressed",
    "create_card": "sharing.model_card",
    "decompress": "storage.compressed",
    "distillation_loss": "training.distillation",
    "evaluate_languages": "evaluation.perplexity",
    "find_language_weights": "choosing.worst_language",
    "find_sparsity": "experiments.search.bisection",
    "held_out_chunks": "training.held_out_chunks",
    "keep_masks": "training.keeper",
    "mix_languages": "training.language_mix",
    "need_weights": "training.language_weights",
    "mask_adapters": "training.masked_adapters",
    "merge_preserving_masks": "training.adapter_merging",
    "plan_pruning": "loading.forecasting",
    "prune_checkpoint": "loading.streamed",
    "push_to_hub": "sharing.hub",
    "read_masks": "training.pruned_entries",
    "recover": "training.recovery",
    "register_allocation": "registry",
    "register_criterion": "registry",
    "save_card": "sharing.model_card",
    "search_plan": "experiments.plans.evolution",
    "save_pretrained_compressed": "storage.compressed",
    "sparsity_map": "record.verification",
    "sparsity_record": "record.verification",
    "TunedRegularisation": "choosing.regularisation",
    "temperature_weights": "training.language_weights",
    "tune_regularisation": "choosing.regularisation",
    "verify_sparsity": "record.verification",
    "work_alone": "processes.group",
    "write_calibration_text": "calibration.self_written",
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from .calibration.self_written import write_calibration_text as write_calibration_text
    from .calibration.statistics import CalibrationStatistics as CalibrationStatistics
    from .choosing.regularisation import TunedRegularisation as TunedRegularisation
    from .choosing.regularisation import tune_regularisation as tune_regularisation
    from .choosing.worst_language import FoundWeights as FoundWeights
    from .choosing.worst_language import find_language_weights as find_language_weights
    from .configuration import MWandaConfig as MWandaConfig
    from .data.language_coverage import LanguageCoverage as LanguageCoverage
    from .evaluation.perplexity import evaluate_languages as evaluate_languages
    from .evaluation.report import PerplexityComparison as PerplexityComparison
    from .evaluation.report import PerplexityReport as PerplexityReport
    from .experiments.plans.evolution import PlanSearch as PlanSearch
    from .experiments.plans.evolution import search_plan as search_plan
    from .experiments.search.bisection import find_sparsity as find_sparsity
    from .experiments.search.outcome import SparsitySearch as SparsitySearch
    from .experiments.search.outcome import SparsityTrial as SparsityTrial
    from .experiments.side_by_side import compare as compare
    from .loading.forecast import PruningForecast as PruningForecast
    from .loading.forecasting import plan_pruning as plan_pruning
    from .loading.streamed import prune_checkpoint as prune_checkpoint
    from .processes.group import LostProcessError as LostProcessError
    from .processes.group import work_alone as work_alone
    from .pruner import MWandaPruner as MWandaPruner
    from .pruning.sparsity_plan import SparsityPlan as SparsityPlan
    from .record.schema import SparsityRecord as SparsityRecord
    from .record.verification import SparsityVerification as SparsityVerification
    from .record.verification import sparsity_map as sparsity_map
    from .record.verification import sparsity_record as sparsity_record
    from .record.verification import verify_sparsity as verify_sparsity
    from .registry import register_allocation as register_allocation
    from .registry import register_criterion as register_criterion
    from .sharing.hub import push_to_hub as push_to_hub
    from .sharing.model_card import create_card as create_card
    from .sharing.model_card import save_card as save_card
    from .storage.compressed import compress as compress
    from .storage.compressed import decompress as decompress
    from .storage.compressed import save_pretrained_compressed as save_pretrained_compressed
    from .storage.read_back import check_saved as check_saved
    from .training.adapter_merging import merge_preserving_masks as merge_preserving_masks
    from .training.blocks_in_turn import LISACallback as LISACallback
    from .training.callback import MWandaCallback as MWandaCallback
    from .training.distillation import distillation_loss as distillation_loss
    from .training.distillation_trainer import DistillationTrainer as DistillationTrainer
    from .training.held_out_chunks import held_out_chunks as held_out_chunks
    from .training.keeper import keep_masks as keep_masks
    from .training.language_mix import LanguageMix as LanguageMix
    from .training.language_mix import mix_languages as mix_languages
    from .training.language_weights import need_weights as need_weights
    from .training.language_weights import temperature_weights as temperature_weights
    from .training.masked_adapters import mask_adapters as mask_adapters
    from .training.moving_masks import RigLCallback as RigLCallback
    from .training.pruned_entries import read_masks as read_masks
    from .training.pruning_in_training import GradualPruningCallback as GradualPruningCallback
    from .training.recovery import Recovery as Recovery
    from .training.recovery import recover as recover
    from .training.recovery_settings import RecoverySettings as RecoverySettings
    from .walking.editor import PartiallyPrunedError as PartiallyPrunedError


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


_install_hooks()
