"""Seeing what is multiplied with the matrices of fused experts while their module runs, so that nothing runs twice."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

SeeExpert = Callable[[int, str, Tensor], None]

# With the experts one after the other, and all at once, sorted by expert.
_PRODUCTS = {"linear", "matmul", "__matmul__", "mm"}
_GROUPED_PRODUCTS = {"grouped_mm", "_grouped_mm", "grouped_mm_fallback"}


class ExpertProducts(TorchFunctionMode):
    """Calls `see(expert, parameter path, X)` for products of `X`, `(tokens, in)`, with the matrix of an expert.

    A matrix is recognised by the memory that it is in, whichever way the module takes it out of its parameter; one that
    was copied before is not.

    Args:
        module: The module that holds the experts.
        parameters: Paths of its parameters.
        count: Number of experts in each.
        see: Is told before the product is computed.

    Attributes:
        seen: Paths of the parameters of which a matrix was recognised.
    """

    def __init__(self, module: nn.Module, parameters: Sequence[str], count: int, see: SeeExpert) -> None:
        super().__init__()
        self._module = module
        self._parameters = parameters
        self._count = count
        self._see = see
        self._sizes: tuple[Tensor, list[int]] | None = None
        self.seen: set[str] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Looks at the arguments and goes on."""
        name = getattr(function, "__name__", "")
        if len(args) > 1 and (name in _PRODUCTS or name in _GROUPED_PRODUCTS):
            x, matrix, *more = args
            offsets = (kwargs or {}).get("offs", more[0] if more else None) if name in _GROUPED_PRODUCTS else None
            self._look(x, matrix, offsets)
        return function(*args, **(kwargs or {}))

    def _look(self, x: Tensor, matrix: Tensor, offsets: Tensor | None) -> None:
        place = matrix.untyped_storage().data_ptr()
        for path in self._parameters:
            holder = self._module.get_parameter(path)
            if holder.untyped_storage().data_ptr() != place or holder.device != matrix.device:
                continue
            size, start = holder.numel() // self._count, matrix.storage_offset() - holder.storage_offset()
            if offsets is not None and matrix.numel() == holder.numel():
                sizes = self._tokens_per_expert(offsets)
                parts = torch.split(x[: sum(sizes)], sizes)
                self.seen.add(path)
            elif offsets is None and matrix.numel() == size and 0 <= start < holder.numel() and start % size == 0:
                parts = (x,)
                self.seen.add(path)
            else:
                continue
            for expert, part in enumerate(parts, start // size):
                self._see(expert, path, part)
            return

    def _tokens_per_expert(self, offsets: Tensor) -> list[int]:
        """From where the tokens of each expert end; both products of a layer have the same, which a GPU tells once."""
        if self._sizes is None or self._sizes[0] is not offsets:
            ends = offsets.tolist()
            self._sizes = offsets, [end - start for start, end in zip([0, *ends], ends, strict=False)]
        return self._sizes[1]
