"""Which weights of a block are trained together, and the outputs that are to be as in the dense model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..modeling.blocks import first
from ..modeling.weights import PrunableWeight
from .store import HiddenStates

_SHRINKAGE = 0.1
"""Share by which the Fisher information of outputs is mixed with one that is the same in all directions."""


class Region(NamedTuple):
    """Weights that are trained together.

    Attributes:
        weights: They.
        module: The module of the block whose output is to be as in the dense model; None for the block itself, or the
            last of several.
        metric: `L`, shape `(out, out)`: an error `e` of the output counts as `‖e L‖²`. None: as `‖e‖²`.
    """

    weights: Sequence[PrunableWeight]
    module: nn.Module | None
    metric: Tensor | None = None


def groups_of(blocks: Iterable[str], size: int) -> list[list[str]]:
    """Blocks that are trained together, `size` at a time; the last ones may be fewer."""
    names = [*blocks]
    return [names[start : start + size] for start in range(0, len(names), size)]


def find_regions(
    block: nn.Module, weights: Sequence[PrunableWeight], kind: str, outputs: Mapping[nn.Module, Tensor] | None = None
) -> list[Region]:
    """Divides the weights of a block, or of several.

    A part is a child of the block (a member of a list of modules counts as a child). Matrices that are children
    themselves form one part as long as they follow each other.

    Args:
        block: The block, or the last one.
        weights: Its weights, or those of all, in the order in which they run.
        kind: `"block"` or, of one alone, `"part"`.
        outputs: The block or a part of it to the Fisher information of its outputs, if errors are weighed by it.
    """
    known, device = outputs or {}, next(block.parameters()).device
    if kind == "block":
        return [Region(weights, None, _metric(known.get(block), device))]
    parts: dict[nn.Module, list[PrunableWeight]] = {}
    lone: nn.Module | None = None
    for weight in weights:
        part = _part_of(block, weight.module)
        if part is weight.module:
            parts[part] = [*(parts.pop(lone) if lone is not None else ()), weight]
            lone = part
        else:
            parts.setdefault(part, []).append(weight)
            lone = None
    return [Region(found, part, _metric(known.get(part), device)) for part, found in parts.items()]


def watched_outputs(block: nn.Module, weights: Sequence[PrunableWeight], kind: str) -> list[nn.Module]:
    """The modules whose outputs regions are held to, if weights run in the order in which the block names them."""
    return [region.module or block for region in find_regions(block, weights, kind)]


def _metric(fisher: Tensor | None, device: torch.device) -> Tensor | None:
    """`L` with `L Lᵀ = (1 − s) B / mean(diag B) + s I`; None if the loss does not depend on the outputs."""
    if fisher is None or not (mean := float(fisher.diagonal().mean())):
        return None
    mixed = fisher.double() * ((1 - _SHRINKAGE) / mean)
    mixed.diagonal().add_(_SHRINKAGE)
    lower: Tensor = torch.linalg.cholesky(mixed)
    return lower.to(device, torch.float32)


def _part_of(module: nn.Module, inner: nn.Module) -> nn.Module:
    """The child of a module that holds another module."""
    child = next(child for child in module.children() if any(each is inner for each in child.modules()))
    return _part_of(child, inner) if isinstance(child, (nn.ModuleList, nn.ModuleDict)) else child


class Aim:
    """What a region gives in the dense model.

    Args:
        outputs: Its outputs, batch by batch.
        metric: That of the region.
    """

    def __init__(self, outputs: HiddenStates, metric: Tensor | None = None) -> None:
        self.outputs = outputs
        self._metric = metric
        self._energies: list[Tensor] = []

    def add(self, output: Tensor, start: Tensor | None) -> None:
        """Counts the next batch.

        Args:
            output: What the region gives.
            start: What its output is added to, if the output holds that too.
        """
        other = torch.zeros_like(output) if start is None else start
        self._energies.append(squares(output, other, self._metric))

    def lack(self, output: Tensor, number: int) -> Tensor:
        """The error of each token.

        Args:
            output: What the region gives in a batch.
            number: Number of the batch.
        """
        return squares(output, self.outputs[number], self._metric)

    def energies(self, numbers: Sequence[int]) -> list[Tensor]:
        """By what to divide the sum of the squares of an error, for every token of some batches of one language.

        This is the sum of the squares of what the region adds to the token, but at least the median of these over all
        tokens of the batches. A few tokens, such as the first of a text, get far more than all others, and would be all
        that counts without it.

        Args:
            numbers: Numbers of the batches.
        """
        found = [self._energies[number] for number in numbers]
        typical = torch.cat([energies.flatten() for energies in found]).median()
        return [energies.clamp_min(typical) for energies in found]


@contextmanager
def catching(regions: Sequence[Region]) -> Iterator[Mapping[nn.Module, Tensor]]:
    """Inside the block of code, holds what the modules of some regions gave when they were called last."""
    caught: dict[nn.Module, Tensor] = {}

    def catch(module: nn.Module, _: Any, output: Any) -> None:
        caught[module] = first(output).clone()  # blocks may go on to compute in it

    handles = [region.module.register_forward_hook(catch) for region in regions if region.module is not None]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def squares(output: Tensor, other: Tensor, metric: Tensor | None = None) -> Tensor:
    """Square of the length of a difference for each token, in float32 or wider.

    Args:
        output: Shape `(..., out)`.
        other: Of the same shape.
        metric: By what to multiply the difference, shape `(out, out)`.
    """
    wide = torch.promote_types(output.dtype, torch.float32)
    difference = output.to(wide) - other.to(wide)
    return (difference if metric is None else difference @ metric.to(wide)).square().sum(-1)
