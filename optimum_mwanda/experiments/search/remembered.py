"""What a search that was stopped has measured already."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any

from ...configuration import MWandaConfig
from ...evaluation.report import PerplexityReport
from ...storage.journal import Journal

_KIND = "measured"


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one model of a search gave.

    Attributes:
        report: Its evaluation.
        achieved_sparsity: Counted share of zeros; 0 for the dense model.
        languages: Languages that it was calibrated on.
    """

    report: PerplexityReport
    achieved_sparsity: float = 0.0
    languages: tuple[str, ...] = ()


class Remembered:
    """Measures each model of a search once, even if the search is stopped and goes on.

    Args:
        journal: Where results are kept, open; None: nowhere.
    """

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal

    def __call__(self, settings: MWandaConfig | None, measure: Callable[[], Measured]) -> Measured:
        """Gives what is known of a model, or measures it.

        Args:
            settings: How the model is pruned; None for the dense one.
            measure: Prunes it if need be, and measures it.
        """
        if self._journal is None:
            return measure()
        described = json.dumps(None if settings is None else settings.to_dict(), sort_keys=True)
        name = hashlib.sha256(described.encode()).hexdigest()[:16]
        if self._journal.find(_KIND, name) is not None:
            values: dict[str, Any] = self._journal.facts(_KIND, name)
            report = PerplexityReport.from_dict(values.pop("report"))
            return Measured(report, values["achieved_sparsity"], tuple(values["languages"]))
        found = measure()
        facts = {
            "report": found.report.to_dict(),
            "achieved_sparsity": found.achieved_sparsity,
            "languages": found.languages,
        }
        self._journal.put(_KIND, name, {}, facts)
        return found
