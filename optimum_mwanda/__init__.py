"""One-shot pruning of multilingual language models that leaves no language behind.

The names below are imported on first use: importing this package imports neither torch nor transformers.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .checkpoint.hooks import install as _install_hooks
from .version import __version__

_HOMES = {
    "CalibrationStatistics": "calibration.statistics",
    "LanguageCoverage": "calibration.dataset",
    "MWandaConfig": "configuration",
    "MWandaPruner": "pruner",
    "PartiallyPrunedError": "modeling.editor",
    "PerplexityComparison": "evaluation.report",
    "PerplexityReport": "evaluation.report",
    "SparsityPlan": "pruning.allocation",
    "SparsitySearch": "guard.report",
    "SparsityTrial": "guard.report",
    "SparsityVerification": "checkpoint.verification",
    "compare": "evaluation.comparison",
    "compress": "checkpoint.compressed",
    "create_card": "checkpoint.card",
    "decompress": "checkpoint.compressed",
    "evaluate_languages": "evaluation.perplexity",
    "find_sparsity": "guard.search",
    "push_to_hub": "checkpoint.hub",
    "save_card": "checkpoint.card",
    "save_pretrained_compressed": "checkpoint.compressed",
    "sparsity_map": "checkpoint.verification",
    "sparsity_record": "checkpoint.verification",
    "verify_sparsity": "checkpoint.verification",
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from .calibration.dataset import LanguageCoverage as LanguageCoverage
    from .calibration.statistics import CalibrationStatistics as CalibrationStatistics
    from .checkpoint.card import create_card as create_card
    from .checkpoint.card import save_card as save_card
    from .checkpoint.compressed import compress as compress
    from .checkpoint.compressed import decompress as decompress
    from .checkpoint.compressed import save_pretrained_compressed as save_pretrained_compressed
    from .checkpoint.hub import push_to_hub as push_to_hub
    from .checkpoint.verification import SparsityVerification as SparsityVerification
    from .checkpoint.verification import sparsity_map as sparsity_map
    from .checkpoint.verification import sparsity_record as sparsity_record
    from .checkpoint.verification import verify_sparsity as verify_sparsity
    from .configuration import MWandaConfig as MWandaConfig
    from .evaluation.comparison import compare as compare
    from .evaluation.perplexity import evaluate_languages as evaluate_languages
    from .evaluation.report import PerplexityComparison as PerplexityComparison
    from .evaluation.report import PerplexityReport as PerplexityReport
    from .guard.report import SparsitySearch as SparsitySearch
    from .guard.report import SparsityTrial as SparsityTrial
    from .guard.search import find_sparsity as find_sparsity
    from .modeling.editor import PartiallyPrunedError as PartiallyPrunedError
    from .pruner import MWandaPruner as MWandaPruner
    from .pruning.allocation import SparsityPlan as SparsityPlan


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


_install_hooks()
