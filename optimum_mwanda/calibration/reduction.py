"""Sums over several processes."""

import dataclasses
from collections.abc import Collection, Sequence

from torch import Tensor, nn

from ..configuration import MWandaConfig
from ..data.chunks import CalibrationChunks, CalibrationText, cut
from ..modeling.fingerprint import model_fingerprint
from ..modeling.sharding import divides_text
from ..processes.dealing import even_part
from ..processes.group import Processes, current


@dataclasses.dataclass(frozen=True)
class Reduce:
    """Adds up over all processes that share a calibration.

    Every process adds up equally often, in the same order, tensors of the same shapes; checks and divisions by a total
    come afterwards. `None` stands for a single process.

    Attributes:
        processes: They.
        divided: Languages whose text several processes may have; of the others one process has all.
    """

    processes: Processes
    divided: Collection[str]

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The totals, for every process."""
        return self.processes.add_up(tensors)


def readers(model: nn.Module) -> Processes:
    """The processes that read calibration text of their own; this one alone, if all run a model on the same text."""
    return current() if divides_text(model) else Processes()


def deal(chunks: CalibrationChunks, processes: Processes) -> tuple[CalibrationChunks, Reduce | None]:
    """Deals calibration text to the processes that share it, language by language, so that all have the same to do.

    Chunks stay in their order: a process has some languages whole, and of the first and the last of them perhaps only a
    part.

    Args:
        chunks: All of it; the same on every process.
        processes: They.

    Returns:
        What this process gets, with the coverage of all, and how its sums are added to those of the others.
    """
    if processes.size == 1:
        return chunks, None
    counts = {language: sum(len(part["input_ids"]) for part in parts) for language, parts in chunks.chunks.items()}
    total = sum(counts.values())
    parts = [even_part(total, rank, processes.size) for rank in range(processes.size)]
    own, own_chunks, divided = parts[processes.rank], {}, set()
    start = 0
    for language, count in counts.items():
        if sum(part.start < start + count and part.stop > start for part in parts) > 1:
            divided.add(language)
        if taken := cut(chunks.chunks[language], own.start - start, own.stop - start):
            own_chunks[language] = taken
        start += count
    return dataclasses.replace(chunks, chunks=own_chunks), Reduce(processes, frozenset(divided))


def check_same(model: nn.Module, config: MWandaConfig, text: CalibrationText, processes: Processes) -> None:
    """Checks that processes that share a calibration were given the same, as their sums mean nothing otherwise.

    Raises:
        ValueError: If they were not.
    """
    if processes.size > 1:
        fingerprints = text.whole().fingerprints
        facts = {
            "the model or its weights": (type(model).__name__, model_fingerprint(model)),
            "the settings": config.to_dict(),
            "the calibration text": fingerprints,
        }
        processes.check_alike(facts, "Give all of them the same model, settings and rows.")
