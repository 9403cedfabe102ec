"""Blocks that a walk need not visit, because an earlier run that was stopped has finished them."""

from collections.abc import Iterable, Mapping, Sequence
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
from ..processes.dealing import owners
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
        OtherRunError: If the journal is of a run in which any of this, a version of a library, or the number of
            processes was different.
    """
    if journal is not None:
        processes = current()
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
            "processes": processes.size,  # sums are rounded otherwise, and each writes its part
        }
        journal.join(processes.from_first(lambda: _opened(journal, run)))


def _opened(journal: Journal, run: Mapping[str, Any]) -> Mapping[tuple[str, str], Path]:
    journal.open(run)
    return journal.parts


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

    def gather(self, blocks: Iterable[str]) -> None:
        """Lets the model of every process have what all of them have kept.

        Args:
            blocks: What the walk has visited, or need not visit.
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
        """Keeps the statistics of a block, and how important it is; the first process does it for all."""
        if self._journal is not None and current().is_first:
            self._journal.put(STATISTICS, block, as_tensors(entries), importance)


class PrunedBlocks(Finished):
    """Blocks that are pruned; of several processes, each keeps a part of every block.

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
        self._processes = current()

    def __contains__(self, block: str) -> bool:
        """Whether a block is pruned."""
        return bool(self._files(block))

    def adopt(self, block: str) -> tuple[Mapping[str, int], Outcome | None]:
        """Lets the model have the pruned weights of a block."""
        if self._journal is None or not (files := self._files(block)):
            return {}, None
        for path in files:
            self._source.adopt(block, path)
        facts = self._journal.facts(PRUNED, self._part(block, 0))
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

        def keep(block: str, values: dict[str, Tensor]) -> Path:
            rank, size = self._processes.rank, self._processes.size
            dealt = owners([value.nbytes for value in values.values()], size)
            for name in [name for name, owner in zip(values, dealt, strict=True) if owner != rank]:
                values.pop(name)
            facts = {"zeros": {w.stored: zeros[w.stored] for w in weights[block]}, "trained": trained.get(block)}
            return journal.put(PRUNED, self._part(block, rank), values, facts)

        self._source.keep = keep

    def gather(self, blocks: Iterable[str]) -> None:
        """Lets the model of every process have the pruned weights that others have written."""
        if self._journal is None or self._processes.size == 1:
            return
        for rank, parts in enumerate(self._processes.gather(self._journal.parts)):
            # What others knew when they began may have been made again since.
            own = {key: path for key, path in parts.items() if key[1].endswith(f"@{rank}")}
            self._journal.join(own)
        for block in blocks:
            self.adopt(block)

    def _part(self, block: str, rank: int) -> str:
        """The name of what a process keeps of a block."""
        return block if self._processes.size == 1 else f"{block}@{rank}"

    def _files(self, block: str) -> list[Path]:
        """The files of a block; none if not all are there."""
        if self._journal is None:
            return []
        found = [self._journal.find(PRUNED, self._part(block, rank)) for rank in range(self._processes.size)]
        return [] if None in found else [path for path in found if path is not None]
