"""Every prunable matrix as one `(out, in)` view."""

import dataclasses
import fnmatch
import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..utils import abridged
from .fused_experts import find_experts
from .sharding import is_sharded, join, own_part, share_out, whole

# Modules that choose experts, by name anywhere in a path: pruning them reroutes tokens and saves almost nothing.
ROUTERS = ("router", "gate", "shared_expert_gate")
# Subclasses of nn.Linear with their own forward pass that still computes `x @ W.T + b`.
LINEAR_SUBCLASSES = ("FalconLinear",)
# Linear layers, by path inside the block, with a weight that is used without calling them: the input cannot be seen.
UNCALLED = ("mamba.dt_proj", "mixer.dt_proj")


@dataclasses.dataclass(frozen=True, eq=False)
class PrunableWeight:
    """One matrix that can be pruned.

    Attributes:
        name: Module path; for a fused expert, the module path, the number of the expert and the name of its parameter.
        block: Module path of its block.
        module: Module that is called with the input of the matrix.
        parameter: Path of the parameter in the module.
        transposed: Whether the parameter holds the matrix as `(in, out)`.
        expert: Number of the expert, if the parameter holds the matrices of several.
        experts: Number of experts in the parameter.
    """

    name: str
    block: str
    module: nn.Module
    parameter: str = "weight"
    transposed: bool = False
    expert: int | None = None
    experts: int = 1

    @property
    def holder(self) -> Tensor:
        """The parameter that holds the weight (for a fused expert, those of all experts), detached."""
        return self.module.get_parameter(self.parameter).detach()

    @property
    def matrix(self) -> Tensor:
        """The weight as a view of shape `(out, in)`, detached: writing to it changes the model."""
        return self.view_of(self.holder)

    def view_of(self, tensor: Tensor) -> Tensor:
        """The part about this weight of a tensor shaped like the holder, as a view of shape `(out, in)`."""
        if self.expert is not None:
            tensor = tensor.view(self.experts, -1, tensor.shape[-1])[self.expert]
        return tensor.T if self.transposed else tensor

    @property
    def own(self) -> Tensor:
        """What this process holds of the weight, as a view like `matrix`; all of it, unless processes share it out."""
        return self.view_of(own_part(self.holder))

    def own_of(self, tensor: Tensor) -> Tensor:
        """The part of a whole tensor of shape `(out, in)` that belongs to what this process holds of the weight."""
        if not is_sharded(self.holder):
            return tensor
        stored = tensor.T if self.transposed else tensor
        part = share_out(stored if self.expert is None else stored[None], self.holder)
        part = part if self.expert is None else part[0]
        return part.T if self.transposed else part

    def gathered(self) -> "PrunableWeight":
        """A weight of the same name whose matrix is whole, to be read; if it is shared out, all processes must call."""
        if not is_sharded(self.holder):
            return self
        module = nn.Module()
        if self.expert is None:
            module.weight = nn.Parameter(whole(self.holder), requires_grad=False)
            return dataclasses.replace(self, module=module, parameter="weight")
        own = own_part(self.holder)[self.expert, None]
        module.weight = nn.Parameter(join(own, self.holder), requires_grad=False)
        return dataclasses.replace(self, module=module, parameter="weight", expert=0, experts=1)

    @property
    def stored(self) -> str:
        """Name of the holder: the module path, or for a fused expert the path of the parameter of all experts."""
        if self.expert is None:
            return self.name
        path, _, parameter = self.name.rpartition(f".{self.expert}.")
        return f"{path}.{parameter}"

    @property
    def expert_name(self) -> str | None:
        """Name of the expert that the matrix belongs to, if it belongs to one."""
        if self.expert is not None:
            return self.name.rpartition(".")[0]
        unfused = re.match(r".*\.experts\.(expert_)?\d+(?=\.)", self.name)
        return unfused[0] if unfused else None

    @property
    def shape(self) -> torch.Size:
        """Rows and columns of the matrix, whoever holds it."""
        rows, columns = self.holder.shape[-2:]
        if self.holder.dim() == 2:
            rows //= self.experts
        return torch.Size((columns, rows) if self.transposed else (rows, columns))

    @property
    def device(self) -> torch.device:
        """Where the matrix is."""
        return self.holder.device

    @property
    def out_features(self) -> int:
        """Rows of the matrix."""
        return self.shape[0]

    @property
    def in_features(self) -> int:
        """Columns of the matrix."""
        return self.shape[1]

    @property
    def numel(self) -> int:
        """Number of weights."""
        return self.shape.numel()


Weights = dict[str, list[PrunableWeight]]
"""Module path of a block to its weights."""


def flat(weights: Weights) -> list[PrunableWeight]:
    """The weights of all blocks, one block after the other."""
    return [weight for block in weights.values() for weight in block]


def only_experts(weights: Weights) -> Weights:
    """The weights that belong to experts of a mixture, with the blocks that have any."""
    found = {name: [weight for weight in block if weight.expert_name is not None] for name, block in weights.items()}
    return {name: block for name, block in found.items() if block}


def find_weights(
    blocks: dict[str, nn.Module], include: Sequence[str] | None = None, exclude: Sequence[str] = ()
) -> Weights:
    """Finds the prunable matrices of every block; embeddings, heads, norms and routers are never among them.

    Args:
        blocks: Module path to block.
        include: Shell patterns of the module paths to prune; None for all.
        exclude: Shell patterns of the module paths to leave alone.

    Returns:
        Module path of a block to its weights; blocks without any are left out.

    Raises:
        ValueError: If a pattern matches nothing, nothing is left, or a block holds weights that cannot be pruned:
            quantized, computed from other parameters, or fused experts in an unknown layout.
    """
    found: Weights = {}
    names: list[str] = []
    seen: set[tuple[int, int | None]] = set()
    for block_name, block in blocks.items():
        for weight in _candidates(block_name, block):
            parameter = _parameter(weight)
            if parameter is None:
                names.append(weight.name)
                if _matches(weight.name, include, exclude):
                    raise _computed(weight)
                continue
            key = (id(parameter), weight.expert)
            if key in seen:
                continue
            names.append(weight.name)
            if not _matches(weight.name, include, exclude):
                continue
            _check_weight(weight.name, parameter)
            seen.add(key)
            found.setdefault(block_name, []).append(weight)
        for name, module in block.named_modules(prefix=block_name):
            if fused := _unknown_experts(module):
                names.append(name)
                if _matches(name, include, exclude):
                    raise ValueError(
                        f"{name!r} ({type(module).__name__}) holds several matrices in one parameter "
                        f"({', '.join(fused)}), in a layout that is not known. Leave the module dense with "
                        f"exclude=['*.{name.rpartition('.')[2]}']."
                    )
    for setting, patterns in (("include", include or ()), ("exclude", exclude)):
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise ValueError(
                    f"{setting} pattern {pattern!r} matches none of the model's weights: {abridged(map(repr, names))}."
                )
    if not found:
        raise ValueError(
            f"No weights are left to prune. The model has: {abridged(map(repr, names)) or 'none that can be pruned'}. "
            "Change include or exclude."
        )
    return found


def check_finite(weight: PrunableWeight) -> None:
    """Checks for NaN and infinite values.

    Raises:
        FloatingPointError: If the weight holds any.
    """
    own = weight.own
    if own.numel() and not torch.stack(torch.aminmax(own)).isfinite().all():  # which needs no copy of it
        raise FloatingPointError(f"{weight.name!r} (block {weight.block!r}) holds NaN or infinite weights.")


def _parameter(weight: PrunableWeight) -> nn.Parameter | None:
    """The parameter of a weight; None if the weight is computed from other parameters."""
    try:
        return weight.module.get_parameter(weight.parameter)
    except AttributeError:
        return None


def _computed(weight: PrunableWeight) -> ValueError:
    return ValueError(
        f"{weight.name!r} ({type(weight.module).__name__}) computes its weight from other parameters, as "
        "torch.nn.utils.prune, weight norm and parametrizations do. Make it permanent first, with prune.remove(module, "
        "'weight'), remove_weight_norm(module) or parametrize.remove_parametrizations(module, 'weight'), or leave it "
        f"dense with exclude=[{weight.name!r}]."
    )


def _matches(name: str, include: Sequence[str] | None, exclude: Sequence[str]) -> bool:
    included = include is None or any(fnmatch.fnmatchcase(name, pattern) for pattern in include)
    return included and not any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude)


def _candidates(block_name: str, block: nn.Module) -> Iterator[PrunableWeight]:
    """Every matrix of a block that could be pruned."""
    for name, module in block.named_modules(prefix=block_name):
        path = name[len(block_name) + 1 :]
        layout = find_experts(module)
        if layout is not None:
            for expert in range(layout.count):
                for parameter, transposed in layout.parameters.items():
                    owner, _, leaf = f"{name}.{parameter}".rpartition(".")
                    yield PrunableWeight(
                        f"{owner}.{expert}.{leaf}", block_name, module, parameter, transposed, expert, layout.count
                    )
        elif _is_linear(module) and path not in UNCALLED and not set(path.split(".")).intersection(ROUTERS):
            yield PrunableWeight(name, block_name, module, transposed=type(module) is Conv1D)


def _is_linear(module: nn.Module) -> bool:
    """Layers that compute only `x @ W.T + b`; quantized ones count too, so that they are refused and not skipped."""
    if type(module) is Conv1D or type(module).__name__ in LINEAR_SUBCLASSES:
        return True
    if not isinstance(module, nn.Linear):
        return False
    return type(module).forward is nn.Linear.forward or not module.weight.is_floating_point()


def _unknown_experts(module: nn.Module) -> list[str]:
    """Parameters of three dimensions that no rule explains; convolution kernels and scales are not matrices."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d)) or find_experts(module) is not None:
        return []
    parameters = module.named_parameters(recurse=False)
    return [key for key, parameter in parameters if parameter.dim() == 3 and min(parameter.shape) > 1]


def _check_weight(name: str, weight: Tensor) -> None:
    if not weight.is_floating_point() or weight.element_size() < 2:
        raise ValueError(f"{name!r} is quantized ({weight.dtype}): prune the model first, then quantize it.")
