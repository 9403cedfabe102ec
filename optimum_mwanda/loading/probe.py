"""How long pruning takes: one block with random weights is pruned for real, and the rest is arithmetic."""

import contextlib
import copy
import dataclasses
import glob
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..configuration import MWandaConfig
from ..modeling.blocks import find_stacks
from ..modeling.pages import in_large_pages
from ..modeling.weights import find_weights, flat
from ..pruner import MWandaPruner
from .whole import empty_model

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

LANGUAGES = ("a", "b")
"""Some allocations compare languages, so there must be two."""
LONG = 5.0
"""Seconds after which a run is not repeated: what comes only once, such as imports, hardly counts then."""
KEPT = 2**26

Clock = Callable[[], float]


@dataclasses.dataclass(frozen=True)
class BlockTime:
    """What pruning one block costs.

    Attributes:
        fixed: Seconds without the text: scores, masks, solvers.
        per_batch: Seconds per batch of calibration text.
        share: Which share of all bytes in blocks was timed.
        reading: Seconds per byte to copy a block out of a file that the system has read, when a checkpoint is streamed.
        keeping: Seconds per byte to write what is kept of a block then, and to hash it.
    """

    fixed: float
    per_batch: float
    share: float
    reading: float
    keeping: float

    def seconds(self, batches: float) -> float:
        """Seconds to prune all blocks.

        Args:
            batches: Batches of calibration text; not a whole number if some are smaller than others.
        """
        return (self.fixed + self.per_batch * batches) / self.share

    def streamed(self, batches: float, read: float, kept: float, in_one_pass: bool) -> float:
        """Seconds to prune all blocks of a checkpoint that is streamed.

        A block is read when half of the last one is written; the other half is written while it is worked on.

        Args:
            batches: As for `seconds`.
            read: Bytes that are read.
            kept: Bytes that are written.
            in_one_pass: Whether the text runs through a block when it is pruned, and not in a pass of its own before.
        """
        pruning, writing = self.seconds(batches), self.keeping * kept
        beside = pruning if in_one_pass else self.fixed / self.share
        return pruning + self.reading * read + max(writing / 2, writing - beside)


def time_block(
    config: "PreTrainedConfig",
    settings: MWandaConfig,
    device: str | int | torch.device,
    dtype: torch.dtype,
    length: int,
    clock: Clock,
) -> BlockTime:
    """Prunes a model that has only the largest block of every stack, and times it.

    If blocks are pruned one after the other, there are two of them, because the last one need not run once more.

    Args:
        config: Config of the model.
        settings: Settings of the pruning.
        device: Where the block runs.
        dtype: Type of the weights.
        length: Tokens per chunk.
        clock: Gives seconds.

    Raises:
        Exception: Whatever a model does that cannot run with fewer blocks than its config says.
    """
    model = empty_model(config, dtype)
    share, names = _leave_one_block(model, settings)
    settings = settings.replace(
        include=names,
        exclude=(),
        languages=None,
        language_weights="equal",
        tune_regularisation=False,
        calibration_tolerance=None if settings.calibration_tolerance is None else 0.0,  # which reads everything
        experts_policy="magnitude",
        min_expert_tokens=1,
        sequence_length=length,
    )

    def run(batches: int) -> float:
        _fill(model, device)  # a model that is pruned already has less to do
        rows = _rows(model, length, batches * settings.batch_size) if settings.needs_statistics else None
        pruner = MWandaPruner(
            settings.replace(samples_per_language=batches * settings.batch_size),
            progress=False,
            restore_on_failure=False,
        )
        start = clock()
        pruner.prune(model, rows)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return clock() - start

    with _in_silence():
        few = run(1)
        if few < LONG:
            few = run(1)
        more = run(3) if settings.needs_statistics else few
    first, last = len(LANGUAGES), 3 * len(LANGUAGES)
    per_batch = max(more - few, 0) / (last - first)
    return BlockTime(max(few - first * per_batch, 0), per_batch, share, *_moving(clock))


def _leave_one_block(model: "PreTrainedModel", settings: MWandaConfig) -> tuple[float, tuple[str, ...] | None]:
    """Leaves the largest block in every stack, once or twice.

    Returns:
        Which share of the bytes of all blocks is left, and patterns for the weights to prune; None for all.
    """
    stacks = find_stacks(model, settings.blocks)
    blocks = {name: block for stack in stacks for name, block in stack.items()}
    chosen = find_weights(blocks, settings.include, settings.exclude)
    copies = 2 if settings.calibration == "sequential" else 1
    total = left = 0
    names: list[str] = []
    for stack in stacks:
        sizes = {name: _size(block) for name, block in stack.items()}
        largest = max(stack, key=lambda name: (name in chosen, sizes[name]))
        total += sum(sizes.values())
        left += sizes[largest] * copies
        path, _, _ = largest.rpartition(".")
        owner, _, leaf = path.rpartition(".")
        kept = [stack[largest], *(copy.deepcopy(stack[largest]) for _ in range(copies - 1))]
        is_list = isinstance(model.get_submodule(path), nn.ModuleList)
        setattr(model.get_submodule(owner), leaf, nn.ModuleList(kept) if is_list else nn.Sequential(*kept))
        paths = [weight.name.removeprefix(largest) for weight in chosen.get(largest, ())]
        names += [f"{path}.{number}{each}" for number in range(copies) for each in paths]
    now = {name: block for stack in find_stacks(model, settings.blocks) for name, block in stack.items()}
    everything = len(names) == len(flat(find_weights(now)))
    return left / total, None if everything else tuple(map(glob.escape, names))


@contextlib.contextmanager
def _in_silence() -> Iterator[None]:
    """Inside the block, nothing is said of what random weights and random text are like."""
    logger = logging.getLogger(__package__.partition(".")[0])
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _size(block: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in block.parameters())


def _fill(model: nn.Module, device: str | int | torch.device) -> None:
    """Brings a model without values to a device, with random ones that no computation turns into NaN."""
    model.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)  # the user's random numbers stay as they are
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if not tensor.is_floating_point():
                tensor.zero_()
            elif tensor.dim() > 1:
                tensor.normal_(0, 0.02, generator=generator)
            else:
                tensor.uniform_(0.5, 1, generator=generator)


def _rows(model: Any, length: int, count: int) -> list[dict[str, Any]]:
    """Random tokens, as much for each language."""
    vocabulary = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (len(LANGUAGES), count, length), generator=generator).tolist()
    columns = ("input_ids", "labels") if model.config.is_encoder_decoder else ("input_ids",)
    return [
        {"language": language, **dict.fromkeys(columns, row)}
        for language, rows in zip(LANGUAGES, ids, strict=True)
        for row in rows
    ]


def _moving(clock: Clock) -> tuple[float, float]:
    """Seconds per byte to read from a file and to write one."""
    content = os.urandom(KEPT)
    with tempfile.TemporaryDirectory() as folder:
        path, start = Path(folder, "kept"), clock()
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        hashlib.sha256(content)
        written = clock()
        mapped = torch.from_file(str(path), size=KEPT, dtype=torch.uint8)
        in_large_pages(torch.empty_like(mapped)).copy_(mapped)
        read = clock()
        del mapped
    return (read - written) / KEPT, (written - start) / KEPT
