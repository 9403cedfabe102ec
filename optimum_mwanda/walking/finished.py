"""Blocks that a walk need not visit, because an earlier run that was stopped has finished them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ..calibration.statistics import WeightStatistics, as_tensors, from_tensors
from ..configuration import MWandaConfig
from ..modeling.block_source import BlockSource
from ..modeling.fingerprint import model_fingerprint
from ..modeling.weights import PrunableWeight
from ..processes.group import current
from ..pruning.tuning import Outcome
from ..storage.journal import Journal
from ..version import __version__

STATISTICS = "statistics"
PRUNED = "pruned"


def begin(
    journal: Journal | None, model: nn.Module, config: MWandaConfig, data: Mapping[str, Any], plan: Any = None
) -> None:
    """Says in a journal what finished blocks depend on.

    Args:
        journal: The journal, if there is one.
        model: The dense model.
        config: The settings.
        data: Fingerprints of the calibration data.
        plan: What else matters: sparsity per block, if somebody else chose it; held-out text.

    Raises:
        OtherRunError: If the journal is of a run in which any of this, or a version of a library, was different.
        ValueError: If several processes share the run.
    """
    if journal is not None:
        if current().size > 1:
            raise ValueError("A journal is for a run in one process: leave it out where several share the work.")
        versions = {
            "optimum_mwanda": __version__,
            "torch": str(torch.__version__),
            "transformers": str(transformers.__version__),
        }
        run = {
            "model": model_fingerprint(model),
            "settings": config.to_dict(),
            "data": data,
            "plan": plan,
            "versions": versions,
        }
        journal.open(run)


class Finished:
    """Nothing is finished, and nothing is kept."""

    def __contains__(self, block: str) -> bool:
        """Whether a block is finished."""
        return False

    def adopt(self, block: str) -> tuple[Mapping[str, int], Outcome | None]:
        """Brings the model to the state in which it is when a walk has left a block that is finished.

        Returns:
            `PrunableWeight.stored` of what was pruned to its zeros, and what training the block has brought, if it was
            trained.
        """
        return {}, None

    def keep_changes(
        self,
        weights: Mapping[str, Sequence[PrunableWeight]],
        zeros: Mapping[str, int],
        trained: Mapping[str, Outcome],
    ) -> None:
        """From now on, keeps what is written back of each block.

        Args:
            weights: Module path of a block to the weights that a walk visits in it.
            zeros: `PrunableWeight.stored` to zeros, filled by the walk before it leaves a block.
            trained: Module path of a block to what training it has brought, filled likewise.
        """


class CalibratedBlocks(Finished):
    """Blocks with known statistics.

    Args:
        journal: Where they are kept; None: nowhere.
    """

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal

    def __contains__(self, block: str) -> bool:
        """Whether the statistics of a block are known."""
        return self._journal is not None and self._journal.find(STATISTICS, block) is not None

    def entries(self, block: str) -> dict[str, WeightStatistics]:
        """The statistics of a finished block."""
        return {} if self._journal is None else from_tensors(self._journal.tensors(STATISTICS, block))

    def importance(self, block: str) -> float | None:
        """How important a finished block is, if that was known."""
        found: float | None = None if self._journal is None else self._journal.facts(STATISTICS, block)
        return found

    def keep(self, block: str, entries: Mapping[str, WeightStatistics], importance: float | None) -> None:
        """Keeps the statistics of a block, and how important it is."""
        if self._journal is not None:
            self._journal.put(STATISTICS, block, as_tensors(entries), importance)


class PrunedBlocks(Finished):
    """Blocks that are pruned.

    Args:
        journal: Where their weights are kept; None: nowhere.
        source: Brings the blocks into memory; reads these weights instead of the dense ones.

    Raises:
        ValueError: If there is a journal, and a block is not on disk.
    """

    def __init__(self, journal: Journal | None, source: BlockSource) -> None:
        if journal is not None and not source.is_on_disk:
            raise ValueError(
                "A journal keeps blocks that are on disk, and this model has blocks in memory: load it with a "
                "device_map that names 'disk' for all of them, or call prune_checkpoint."
            )
        self._journal = journal
        self._source = source

    def __contains__(self, block: str) -> bool:
        """Whether a block is pruned."""
        return self._journal is not None and self._journal.find(PRUNED, block) is not None

    def adopt(self, block: str) -> tuple[Mapping[str, int], Outcome | None]:
        """Lets the model have the pruned weights of a block."""
        if self._journal is None or (path := self._journal.find(PRUNED, block)) is None:
            return {}, None
        self._source.adopt(block, path)
        facts = self._journal.facts(PRUNED, block)
        return facts["zeros"], None if facts["trained"] is None else Outcome(*facts["trained"])

    def keep_changes(
        self,
        weights: Mapping[str, Sequence[PrunableWeight]],
        zeros: Mapping[str, int],
        trained: Mapping[str, Outcome],
    ) -> None:
        """From now on, keeps the pruned weights of each block."""
        if (journal := self._journal) is None:
            return

        def keep(block: str, values: Mapping[str, Tensor]) -> Path:
            facts = {"zeros": {w.stored: zeros[w.stored] for w in weights[block]}, "trained": trained.get(block)}
            return journal.put(PRUNED, block, values, facts)

        self._source.keep = keep
