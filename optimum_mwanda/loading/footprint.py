"""How much memory and disk pruning takes, from shapes alone. All numbers are bytes."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..configuration import MWandaConfig
from ..modeling.blocks import find_stacks
from ..modeling.weights import Weights, flat
from ..registry import ALLOCATIONS
from ..storage.read_back import RELEASED_AFTER
from ..walking.regions import groups_of

LIBRARIES = {"memory": 55 * 10**6, "stream": 35 * 10**6}
"""What is imported and set up only while a model is pruned; from disk, less of it is there at the peak."""
FRAGMENTS = 85 * 10**6
"""What the C library keeps of freed memory at the peak, unless blocks come from disk; it is another amount in every
run, and may be 300 MB."""
SCORES = 5
"""Bytes for each weight of a matrix that its scores take, and which of them are high."""
PARTS = 2**22
"""Weights of a matrix that are summed, or whose lowest scores are found, at a time, with some copies of them."""
AROUND = 2**19
"""Bytes that come into memory when a row of a mapped file is read."""
SWAPS = {"cpu": 2**20 * 4 * 4, "elsewhere": 2**24 * 4 * 4}
"""The candidates for swaps of some rows, with what they are compared by."""
FACTORS = {"swap": 7, "obs": 12, "alps": 14, "sparsegpt": 4}
"""Copies of a matrix in float32 that refinement, reconstruction and solvers take at a time."""
SQUARES = {"obs": 2, "alps": 2, "sparsegpt": 0}
"""Copies of a Gram matrix, beside itself; SparseGPT works in its memory."""
SHRUNK = {"obs": 1, "alps": 1, "sparsegpt": 2}
"""As many more if it is shrunk."""
STRIPS = 9 / 16
"""What is held of a Gram matrix while it is summed up."""
TRAINED = 21
"""Bytes for each weight that is trained: itself, its gradient twice, and two moments in float32, and its mask."""


@dataclasses.dataclass(frozen=True)
class Text:
    """The calibration text.

    Attributes:
        tokens: All tokens.
        per_batch: Tokens in a batch.
        languages: Number of languages.
    """

    tokens: int
    per_batch: int
    languages: int


class Footprint:
    """Sizes of the parts of a model, and of what pruning makes of them.

    Args:
        model: The model, perhaps without values (meta device), in the type in which it is pruned.
        blocks: Module path to block.
        weights: Module path of a block to its weights.
        config: The settings.
        text: The calibration text.
        converted: Bytes of each tensor that runs in another form than the files hold. While they are converted, they
            are in memory in both forms, and in the files that are read or written.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Mapping[str, nn.Module],
        weights: Weights,
        config: MWandaConfig,
        text: Text,
        converted: Sequence[int] = (),
    ) -> None:
        self._converted, self._most_converted = sum(converted), max(converted, default=0)
        self._config, self._text, self._weights = config, text, weights
        self._together = config.reconstruction_blocks if config.trains_blocks else 1
        stacks = find_stacks(model, config.blocks)
        self._groups = [group for stack in stacks for group in groups_of(stack, self._together)]
        self.blocks = {name: _bytes(block) for name, block in blocks.items()}
        self.model = _bytes(model)
        self.outside = self.model - sum(self.blocks.values())
        self._width = next(model.parameters()).element_size()
        typed: Any = model
        self._hidden = int(typed.config.get_text_config().hidden_size)
        self._vocabulary = int(typed.get_input_embeddings().weight.shape[0])
        tables = {id(part.weight): int(part.weight.nbytes) for part in _tables(model)}
        self._tables, self._table = sum(tables.values()), max(tables.values(), default=0)
        self._unread = self._tables - self._read_of(typed.get_input_embeddings().weight)
        self._largest = max(weight.numel for weight in flat(weights))
        self._tensor = max(each.nbytes for block in blocks.values() for each in block.parameters())
        self._widest = max(weight.in_features for weight in flat(weights))

    @property
    def hidden_states(self) -> int:
        """The hidden states of the whole text between two blocks; where blocks are trained, of two models.

        Where several are trained together, what enters the first of them is kept as well.
        """
        kept = 1 + self._config.trains_blocks + (self._together > 1)
        return kept * self._text.tokens * self._hidden * self._width if self._config.needs_statistics else 0

    def pair(self, is_mapped: bool) -> int:
        """Two blocks that follow each other: one is worked on while the other is written, or read onto a GPU.

        Blocks that are trained together are in memory together, and while they are nothing else is.

        Args:
            is_mapped: Whether blocks run in the memory of the machine; of the one that is written, half is left there.
        """
        sizes = [*self.blocks.values()]
        before = [0, *(size // 2 if is_mapped else size for size in sizes)]
        together = max(sum(self.blocks[name] for name in group) for group in self._groups)
        return max(together, *map(sum, zip(sizes, before, strict=False)))

    @property
    def statistics(self) -> int:
        """Sums per matrix and language."""
        if not self._config.needs_statistics:
            return 0
        kinds = 2 if self._config.activity is not None else 1
        inputs = sum(weight.in_features for weight in flat(self._weights)) * self._text.languages * 8 * kinds
        return inputs + self._rows() + self._factors()

    def working(self, is_on_cpu: bool) -> int:
        """The most that running a block or deciding on its weights takes beside its weights."""
        grams, deciding = self._grams(), self._deciding(is_on_cpu)
        summing = self._running() + int(2 * STRIPS * grams)  # those of one language, and what is pooled
        pooling = int((1 + STRIPS) * grams)
        deciding = max(summing, pooling, deciding + grams, self._allocating(), self._training())
        # While sensitivities are taken, those of one language are beside what is pooled.
        return max(deciding, self._differentiating() + self._factors())

    @property
    def masks(self) -> int:
        """Bits of all masks, which are kept together unless blocks are taken one after the other."""
        return 0 if self._config.works_blockwise else sum(weight.numel for weight in flat(self._weights)) // 8

    def in_memory(self, hidden: int, is_mapped: bool) -> int:
        """Peak of pruning a model that is in memory, and of writing it, where the model is.

        Args:
            hidden: Bytes of hidden states that are kept there.
            is_mapped: Whether tables that are not read stay in their files, as in the memory of a machine.
        """
        unread, twice, checked = (self._unread, self._converted, self._tables) if is_mapped else (0, 0, 0)
        pruning = self.model - unread + twice + hidden + self.masks + self.statistics + self.working(is_mapped)
        # What is converted is in memory twice while it is written, and the tables while they are read back.
        return max(pruning, self.model + 2 * self._converted, self.model + twice + checked)

    def streamed(self, hidden: int, is_mapped: bool) -> int:
        """Peak of pruning a checkpoint whose blocks are on disk, and of writing it, where blocks run.

        Args:
            hidden: As for `in_memory`.
            is_mapped: As for `in_memory`.
        """
        tables, unread = (self._tables, self._unread) if is_mapped else (0, 0)
        recording = self.outside - unread + hidden
        blocks = self.outside - tables + self.pair(is_mapped) + hidden + self.statistics + self.working(is_mapped)
        writing = self.outside + max(self.blocks.values())
        if not is_mapped:
            return max(recording, blocks, writing)
        loading = self.outside - tables + self._converted + 2 * self._most_converted
        return max(loading, recording, blocks, writing, self.outside + self._read_back())

    def beside_device(self) -> int:
        """Peak of the same in the memory of the machine, where blocks run on another device."""
        return max(self._converted + 2 * self._most_converted, self._read_back())

    def _read_back(self) -> int:
        """What is read at a time of an output whose blocks are on disk, and what it is compared with."""
        read = min(RELEASED_AFTER + self._tensor, self.model)
        return max(read + self._tensor + self._most_converted, self._table)  # experts are put together to be compared

    def journal(self) -> int:
        """What is kept on disk of pruned blocks until the output is complete."""
        holders = {weight.stored: weight.holder.nbytes for weight in flat(self._weights)}
        return sum(holders.values()) + self.statistics

    def _read_of(self, table: Tensor) -> int:
        """How much of the mapped embeddings comes into memory, each row with what lies around it."""
        tokens = self._text.tokens if self._config.needs_statistics else 0
        return int(table.nbytes * -math.expm1(-tokens * AROUND / table.nbytes))

    def _running(self) -> int:
        """Activations of one batch in the widest place of a block, and their squares."""
        if not self._config.needs_statistics:
            return 0
        return self._text.per_batch * self._widest * (3 * self._width + 8)

    def _training(self) -> int:
        """Trained weights in float32 with gradients and moments, rounded copies, and the activations of a batch."""
        if not self._config.trains_blocks:
            return 0
        groups = [[weight for name in group for weight in self._weights.get(name, ())] for group in self._groups]
        weights = max(sum(weight.numel for weight in found) for found in groups)
        widths = max(sum(sum(weight.matrix.shape) for weight in found) for found in groups)
        chosen = self._width + 8 if self._config.trains_masks else 0  # as they were, masked, and their scores
        per_step = self._text.per_batch * self._config.reconstruction_batch_size // self._config.batch_size
        return weights * (TRAINED + chosen + 4 * self._width) + per_step * widths * (self._width + 4)

    def _rows(self) -> int:
        """Sums per row and language, if the settings ask for sensitivities."""
        if self._config.sensitivity == "none":
            return 0
        return sum(weight.out_features for weight in flat(self._weights)) * self._text.languages * 8

    def _factors(self) -> int:
        """How outputs of every matrix, or of every block, go together; all is kept until the last block is pruned.

        A block has at most three parts: attention, cross-attention and MLP.
        """
        rows = sum(4 * weight.out_features**2 for weight in flat(self._weights)) if self._config.couples_rows else 0
        parts = 3 if self._config.reconstruction_region == "part" else 1
        outputs = parts * len(self._groups) * 4 * self._hidden**2 if self._config.weighs_outputs else 0
        return rows + outputs

    def _differentiating(self) -> int:
        """Of a batch: hidden states between blocks, the inside of a block with gradients, and logits."""
        if self._config.sensitivity == "none":
            return 0
        widths = max(sum(sum(weight.shape) for weight in found) for found in self._weights.values())
        between = len(self.blocks) * self._hidden * self._width
        return self._text.per_batch * (between + widths * (self._width + 4) + self._vocabulary * 2 * self._width)

    def _allocating(self) -> int:
        if ALLOCATIONS[str(self._config.allocation)].importance is None:
            return 0
        return SCORES * self._largest + 8 * min(self._largest, PARTS)

    def _deciding(self, is_on_cpu: bool) -> int:
        if self._config.updates_matrices:
            solver = self._config.criterion if self._config.criterion in ("alps", "sparsegpt") else "obs"
            squares = SQUARES[solver] + (SHRUNK[solver] if self._config.reconstruction_shrinkage else 0)
            return FACTORS[solver] * self._largest * 4 + squares * self._widest**2 * 4
        if self._config.swaps:
            tallest = max(weight.out_features for weight in flat(self._weights)) if self._config.couples_rows else 0
            compared = SWAPS["cpu" if is_on_cpu else "elsewhere"]
            return FACTORS["swap"] * self._largest * 4 + self._widest**2 * 4 + compared + 3 * tallest**2 * 4
        scores = 8 if self._width == 4 else 12  # a product of two, and a copy of the matrix in float32
        # Many weights of a row have the same magnitude; a GPU lists the lowest weights with their places.
        part = 12 if self._config.criterion == "magnitude" else 4 if is_on_cpu else 6
        at_once = self._largest if self._config.group == "matrix" and not is_on_cpu else PARTS
        return max(scores * self._largest, 5 * self._largest + part * min(self._largest, at_once))

    def _grams(self) -> int:
        """Gram matrices that are held together; matrices of one module share an input."""
        if not self._config.needs_grams:
            return 0
        held: list[int] = []
        for found in self._weights.values():
            inputs = {(weight.name.rpartition(".")[0], weight.in_features) for weight in found}
            sizes = [4 * width**2 for _, width in inputs]
            held.append(sum(sizes) if self._config.calibration == "dense" else max(sizes))
        return max(held)


def _tables(model: Any) -> list[Any]:
    """Input embeddings and head."""
    parts = (model.get_input_embeddings(), model.get_output_embeddings())
    return [part for part in parts if getattr(part, "weight", None) is not None]


def _bytes(module: nn.Module) -> int:
    """Parameters and buffers, tied ones once."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
