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
    "PerplexityComparison": "evaluation.report",
    "PerplexityReport": "evaluation.report",
    "SparsityPlan": "pruning.allocation",
    "evaluate_languages": "evaluation.perplexity",
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from .calibration.dataset import LanguageCoverage as LanguageCoverage
    from .calibration.statistics import CalibrationStatistics as CalibrationStatistics
    from .configuration import MWandaConfig as MWandaConfig
    from .evaluation.perplexity import evaluate_languages as evaluate_languages
    from .evaluation.report import PerplexityComparison as PerplexityComparison
    from .evaluation.report import PerplexityReport as PerplexityReport
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
