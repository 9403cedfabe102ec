"""Running a model, or a part of it, to see the inputs of its weights."""

from collections.abc import Generator, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from typing import TYPE_CHECKING, Any, Protocol

from ..calibration.collector import StatisticsCollector
from ..calibration.reduction import deal
from ..calibration.statistics import CalibrationStatistics
from ..configuration import MWandaConfig
from ..data.chunks import CalibrationChunks
from ..modeling.blocks import find_blocks, run_blocks
from ..modeling.fingerprint import model_fingerprint
from ..modeling.sharding import reshard, shares_parameters
from ..modeling.weights import PrunableWeight
from ..processes.group import Processes, current
from ..utils import portable_name, progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Collector(AbstractContextManager[Any], Protocol):
    """Sums up the inputs of some weights while it is open."""

    def start(self, language: str) -> None:
        """Counts everything from here on for one language."""


def run_watched(runs: Generator[Any, None, None], languages: Iterable[str], *collectors: Collector) -> None:
    """Runs one batch after the other while collectors watch.

    Args:
        runs: Runs a batch each time it is asked for another item.
        languages: Language of every batch; batches of one language come together.
        *collectors: Collectors that watch; opened here.
    """
    with ExitStack() as stack:
        stack.enter_context(closing(runs))
        for collector in collectors:
            stack.enter_context(collector)
        for language in languages:
            for collector in collectors:
                collector.start(language)
            next(runs)
        next(runs, None)  # runs what comes after the last batch


def calibrate(
    model: "PreTrainedModel",
    weights: Sequence[PrunableWeight],
    chunks: CalibrationChunks,
    config: MWandaConfig,
    activities: Sequence[str] = (),
    progress: bool = False,
) -> CalibrationStatistics:
    """Runs all calibration text through the blocks of a model; processes that share the work run a part each.

    Args:
        model: The model, in inference mode.
        weights: Weights to watch; without any the model is not run.
        chunks: Calibration data.
        config: Its `batch_size` and `blocks`.
        activities: Kinds of activity to count.
        progress: Whether to show a progress bar.

    Returns:
        Statistics of these weights.

    Raises:
        FloatingPointError: If activations are NaN or infinite.
        ValueError: If no token of a language reaches a weight outside the experts.
    """
    size = config.batch_size
    processes = current()
    own, reduce = deal(chunks, processes)
    collector = StatisticsCollector(weights, list(chunks.chunks), activities, reduce)
    if weights:
        blocks = find_blocks(model, config.blocks)
        total = own.number_of_batches(size)
        batches = progress_bar(
            own.batches(size), total=total, description="Calibrating", show=progress and processes.is_first
        )

        def runs() -> Generator[None, None, None]:
            with closing(batches):  # so that the bar ends before an error is shown
                for _, inputs in batches:
                    run_blocks(model, blocks, inputs)
                    yield

        run_watched(runs(), [language for language, _ in own.batches(size)], collector)
        if shares_parameters(model):
            everyone = [deal(chunks, Processes(rank, processes.size))[0] for rank in range(processes.size)]
            for _ in range(max(each.number_of_batches(size) for each in everyone) - total):
                run_blocks(model, blocks, next(chunks.batches(size))[1])  # the others need this process's parts
            reshard(model)
    experts = dict.fromkeys(weight.expert_name for weight in weights if weight.expert_name is not None)
    return CalibrationStatistics(
        collector.finish(),
        coverage=tuple(entry for entry in chunks.coverage if entry.chunks),
        fingerprints={language: (digest,) for language, digest in chunks.fingerprints.items()},
        model=portable_name(getattr(model, "name_or_path", "") or ""),
        model_fingerprint=model_fingerprint(model),
        left_out=tuple(entry for entry in chunks.coverage if not entry.chunks),
        experts=tuple(experts),
    )
