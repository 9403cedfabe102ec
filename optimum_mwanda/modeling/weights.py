"""Every prunable matrix as one `(out, in)` view, and pruning that can be taken back."""

import dataclasses
import fnmatch
import logging
from collections.abc import Sequence
from types import TracebackType

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..pruning.masks import pack_bits, unpack_bits

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class PrunableWeight:
    """One matrix that can be pruned.

    Attributes:
        name: Module path.
        block: Module path of its block.
        module: `nn.Linear`, or `Conv1D`, which stores the matrix as `(in, out)`.
    """

    name: str
    block: str
    module: nn.Module

    @property
    def matrix(self) -> Tensor:
        """The weight as a view of shape `(out, in)`, detached: writing to it changes the model."""
        weight = self.module.weight.detach()  # type: ignore[operator]
        return weight.T if isinstance(self.module, Conv1D) else weight

    @property
    def out_features(self) -> int:
        """Rows of the matrix."""
        return self.matrix.shape[0]

    @property
    def in_features(self) -> int:
        """Columns of the matrix."""
        return self.matrix.shape[1]

    @property
    def numel(self) -> int:
        """Number of weights."""
        return self.matrix.numel()


def find_weights(
    blocks: dict[str, nn.Module], include: Sequence[str] | None = None, exclude: Sequence[str] = ()
) -> dict[str, list[PrunableWeight]]:
    """Finds the prunable matrices of every block; embeddings, heads, norms and routers are never among them.

    Args:
        blocks: Module path to block.
        include: Shell patterns of the module paths to prune; None for all.
        exclude: Shell patterns of the module paths to leave alone.

    Returns:
        Module path of a block to its weights; blocks without any are left out.

    Raises:
        ValueError: If a pattern matches nothing, nothing is left, or a block holds weights that cannot be pruned:
            quantized, offloaded, or fused experts.
    """
    found: dict[str, list[PrunableWeight]] = {}
    names: list[str] = []
    seen: set[int] = set()
    for block_name, block in blocks.items():
        for name, module in block.named_modules(prefix=block_name):
            fused = _fused_experts(name, module)
            prunable = _is_linear(module) and id(module.weight) not in seen
            if not prunable and not fused:
                continue
            names.append(name)
            if not _matches(name, include, exclude):
                continue
            if fused:
                raise ValueError(
                    f"{name!r} holds fused experts ({', '.join(fused)}), which cannot be pruned yet. Leave them dense "
                    f"with exclude=['*.{name.rpartition('.')[2]}']."
                )
            _check_weight(name, module.weight)
            seen.add(id(module.weight))
            found.setdefault(block_name, []).append(PrunableWeight(name, block_name, module))
    for setting, patterns in (("include", include or ()), ("exclude", exclude)):
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise ValueError(
                    f"{setting} pattern {pattern!r} matches none of the model's weights: {_abridged(names)}."
                )
    if not found:
        raise ValueError(f"Nothing is left to prune of the model's weights: {_abridged(names) or 'it has none'}.")
    return found


def check_finite(weight: PrunableWeight) -> None:
    """Looks for NaN and infinite values.

    Raises:
        FloatingPointError: If the weight holds any.
    """
    if not weight.matrix.isfinite().all():
        raise FloatingPointError(f"{weight.name!r} (block {weight.block!r}) holds NaN or infinite weights.")


def _matches(name: str, include: Sequence[str] | None, exclude: Sequence[str]) -> bool:
    included = include is None or any(fnmatch.fnmatchcase(name, pattern) for pattern in include)
    return included and not any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude)


def _is_linear(module: nn.Module) -> bool:
    """Plain linear layers. Subclasses may route or gate; quantized ones count, to be refused and not passed over."""
    if type(module) in (nn.Linear, Conv1D):
        return True
    return isinstance(module, nn.Linear) and not module.weight.is_floating_point()


def _fused_experts(name: str, module: nn.Module) -> list[str]:
    """Three-dimensional parameters, one matrix per expert; convolution kernels are no matrices."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return []
    return [key for key, parameter in module.named_parameters(recurse=False) if parameter.dim() == 3]


def _check_weight(name: str, weight: Tensor) -> None:
    if weight.device.type == "meta":
        raise ValueError(f"{name!r} is offloaded (meta device): load the whole model into memory to prune it.")
    if not weight.is_floating_point() or weight.element_size() < 2:
        raise ValueError(f"{name!r} is quantized ({weight.dtype}): prune the model first, then quantize it.")


def _abridged(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


class PartiallyPrunedError(RuntimeError):
    """Pruning ended early on a model that could not be put back; the message says which weights are pruned."""


class WeightEditor:
    """Sets weights to zero inside a `with` block, and puts them all back if the block fails or is interrupted.

    What was removed is kept on the CPU, packed: one bit per weight plus the removed values.

    Args:
        reversible: Whether to keep what was removed. Without it a failure raises `PartiallyPrunedError`.
    """

    def __init__(self, reversible: bool = True) -> None:
        self._reversible = reversible
        self._removed: list[tuple[PrunableWeight, Tensor, Tensor]] = []
        self._edited: list[PrunableWeight] = []

    def zero(self, weight: PrunableWeight, pruned: Tensor) -> None:
        """Sets the marked entries to zero.

        Args:
            weight: The weight to change.
            pruned: Boolean, shape `(out, in)`, True where a weight goes.
        """
        if self._reversible:
            self._removed.append((weight, pack_bits(pruned).cpu(), weight.matrix[pruned].cpu()))
        self._edited.append(weight)
        weight.matrix.masked_fill_(pruned, 0)

    def __enter__(self) -> "WeightEditor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or not self._edited:
            return
        if not self._reversible:
            raise PartiallyPrunedError(
                f"Pruning stopped ({type(error).__name__}: {error}) and nothing was kept to undo it: "
                f"{len(self._edited)} weights are pruned already, the last of them, {self._edited[-1].name!r}, perhaps "
                "only in part; the rest is dense. Load the model again."
            ) from error
        for weight, packed, values in reversed(self._removed):
            matrix = weight.matrix
            pruned = unpack_bits(packed, matrix.shape).to(matrix.device)
            matrix[pruned] = values.to(matrix.device)
        logger.warning("Pruning stopped; the model's weights are as they were before.")
