"""Statistics of the dense model: from one pass of the whole model or, if it is offloaded, block by block."""

import dataclasses
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from ..calibration.collector import StatisticsCollector
from ..calibration.reduction import deal, readers
from ..calibration.settling import SettlingText
from ..calibration.statistics import CalibrationStatistics, WeightStatistics
from ..configuration import MWandaConfig
from ..data.chunks import CalibrationChunks, CalibrationText
from ..data.packing import Batch
from ..modeling.block_source import BlockSource
from ..modeling.blocks import find_blocks, input_device, run_blocks
from ..modeling.fingerprint import model_fingerprint
from ..modeling.sharding import reshard, shares_parameters
from ..modeling.weights import PrunableWeight, Weights, flat
from ..processes.group import Processes, current
from ..pruning.experts_policy import kept_experts
from ..storage.journal import Journal
from ..utils import portable_name, progress_bar
from .block_by_block import BlockByBlock
from .deciding import importance_of, weighs_blocks
from .finished import CalibratedBlocks
from .store import HiddenStates, OnDevice
from .watching import run_watched

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Calibrated(NamedTuple):
    """What one pass over the dense model has shown.

    Attributes:
        statistics: Statistics of the weights.
        importance: Block to importance, if it was taken while the block was in memory.
        chunks: The text that was read: all of it, unless the settings say when it is enough.
    """

    statistics: CalibrationStatistics
    importance: Mapping[str, float | None] | None
    chunks: CalibrationChunks


def calibrate(
    model: "PreTrainedModel",
    weights: Weights,
    text: CalibrationText | CalibrationChunks,
    config: MWandaConfig,
    source: BlockSource,
    activities: Sequence[str] = (),
    progress: bool = False,
    store: Callable[[], HiddenStates] = OnDevice,
    journal: Journal | None = None,
    for_all: bool = False,
) -> Calibrated:
    """Runs all calibration text through the blocks of a model; processes that share the work run a part each.

    Args:
        model: The model, in inference mode.
        weights: Module path of a block to the weights to watch in it; without any the model is not run.
        text: Calibration data. Where one process holds the model, on a GPU, it may be read while the model runs.
        config: Its `batch_size`, `blocks` and `calibration_tolerance`.
        source: Brings blocks into memory. If it must, each block is brought once and runs over all batches.
        activities: Kinds of activity to count.
        progress: Whether to show a progress bar.
        store: Makes a place for the hidden states of all batches between two blocks.
        journal: Where the statistics of each block of an offloaded model are kept.
        for_all: Whether the weights are all that may be pruned. Then, if each block is in memory once and the settings
            ask for it, its importance is taken there as well.

    Raises:
        FloatingPointError: If activations are NaN or infinite.
        TypeError: As `CalibrationText`.
        ValueError: As `CalibrationText`, or if no token of a language reaches a weight outside the experts.
    """
    experts = dict.fromkeys(weight.expert_name for weight in flat(weights) if weight.expert_name is not None)
    entries: Mapping[str, WeightStatistics] = {}
    if weights and source.is_resident:
        entries, chunks = _in_one_pass(model, weights, text, config, activities, progress)
    else:
        chunks = text.whole()
    statistics = CalibrationStatistics(
        dict(entries),
        coverage=tuple(entry for entry in chunks.coverage if entry.chunks),
        fingerprints={language: (digest,) for language, digest in chunks.fingerprints.items()},
        model=portable_name(getattr(model, "name_or_path", "") or ""),
        model_fingerprint=model_fingerprint(model),
        left_out=tuple(entry for entry in chunks.coverage if not entry.chunks),
        experts=tuple(experts),
    )
    if not weights or source.is_resident:
        return Calibrated(statistics, None, chunks)
    is_weighed = for_all and weighs_blocks(config)

    def measure(found: Sequence[PrunableWeight], entries: Mapping[str, WeightStatistics]) -> float | None:
        pruned = kept_experts(found, entries, config) if is_weighed else ()
        return importance_of(pruned, entries, statistics, config) if pruned else None

    entries, importance = _block_by_block(
        model, weights, chunks, config, source, activities, progress, store, journal, measure
    )
    return Calibrated(dataclasses.replace(statistics, weights=entries), importance if is_weighed else None, chunks)


def _block_by_block(
    model: "PreTrainedModel",
    weights: Weights,
    chunks: CalibrationChunks,
    config: MWandaConfig,
    source: BlockSource,
    activities: Sequence[str],
    progress: bool,
    store: Callable[[], HiddenStates],
    journal: Journal | None,
    measure: Callable[[Sequence[PrunableWeight], Mapping[str, WeightStatistics]], float | None],
) -> tuple[dict[str, WeightStatistics], dict[str, float | None]]:
    """Each block is in memory once, and the hidden states of all batches are kept."""
    finished = CalibratedBlocks(journal)
    own, reduce = deal(chunks, readers(model))
    equal = dict.fromkeys(chunks.chunks, 1.0)
    walk = BlockByBlock(
        model, weights, own, equal, config, source, store, reduce, only_statistics=activities, finished=finished
    )
    found = {name: finished.entries(name) for name in weights if name in finished}
    importance = {name: finished.importance(name) for name in found}
    with closing(walk.steps()) as steps:
        is_shown = progress and current().is_first
        for step in progress_bar(steps, total=len(walk.unfinished), description="Calibrating", show=is_shown):
            block = step.weights[0].block
            found[block] = dict(step.look().entries)
            importance[block] = measure(weights[block], found[block])
            finished.keep(block, found[block], importance[block])
    return {weight.name: found[weight.block][weight.name] for weight in flat(weights)}, importance


def _in_one_pass(
    model: "PreTrainedModel",
    weights: Weights,
    text: CalibrationText | CalibrationChunks,
    config: MWandaConfig,
    activities: Sequence[str],
    progress: bool,
) -> tuple[dict[str, WeightStatistics], CalibrationChunks]:
    """The whole model runs batch by batch, and no hidden states are kept; also returns the text that was read."""
    size, processes = config.batch_size, readers(model)
    # A thread that reads on the processor would take from a model there what it saves.
    is_whole = processes.size > 1 or config.calibration_tolerance is not None or input_device(model).type == "cpu"
    own, reduce = deal(text.whole(), processes) if is_whole else (text, None)
    collector = StatisticsCollector(flat(weights), text.languages, activities, reduce)
    blocks = find_blocks(model, config.blocks)
    coming, settling = own.batches(size), None
    total: int | Callable[[], int | None] = partial(own.number_of_batches, size)
    if config.calibration_tolerance is not None:
        settling = SettlingText(own.whole(), size, collector, config.calibration_tolerance)
        coming, total = iter(settling), settling.most_batches
    batches = progress_bar(coming, total=total, description="Calibrating", show=progress and current().is_first)
    following: list[Batch] = []

    def languages() -> Iterator[str]:
        for language, inputs in batches:
            following.append(inputs)
            yield language

    def runs() -> Generator[None, None, None]:
        with closing(batches):  # so that the bar ends before an error is shown
            while following:
                run_blocks(model, blocks, following.pop())
                yield

    with closing(coming):  # so that no thread reads any longer, however this ends
        run_watched(runs(), languages(), collector)
    chunks = text.whole()
    if shares_parameters(model):
        everyone = [deal(chunks, Processes(rank, processes.size))[0] for rank in range(processes.size)]
        counts = [each.number_of_batches(size) for each in everyone]
        for _ in range(max(counts) - counts[processes.rank]):
            run_blocks(model, blocks, next(chunks.batches(size))[1])  # the others need this process's parts
        reshard(model)
    return collector.finish(chunks.languages), chunks if settling is None else chunks.first(settling.read)
