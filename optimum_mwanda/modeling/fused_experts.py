"""Fused experts: where a mixture-of-experts layer keeps the matrices of its experts, and the inputs of each matrix."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Inputs = Iterator[tuple[int, str, Tensor]]


@dataclasses.dataclass(frozen=True)
class ExpertsLayout:
    """How one kind of module stores its experts.

    Attributes:
        parameters: Parameter path to whether its matrices are stored as `(in, out)`.
        count: Number of experts.
        inputs: From the module and the arguments of its forward pass to `(expert, parameter path, X)`; `X`, of shape
            `(tokens, in)`, is the input of that matrix. Experts without tokens may be left out.
    """

    parameters: dict[str, bool]
    count: int
    inputs: Callable[[Any, tuple[Any, ...], dict[str, Any]], Inputs]


def find_experts(module: nn.Module) -> ExpertsLayout | None:
    """Recognises a module that holds fused experts.

    Returns:
        Its layout, or None if it does not hold fused experts.
    """
    for rule in _LAYOUTS:
        layout = rule(module)
        if layout is not None:
            return layout
    return None


def _dispatched(module: Any) -> ExpertsLayout | None:
    """The experts classes of transformers, called with tokens, chosen experts and their weights."""
    down = getattr(module, "down_proj", None)
    if not isinstance(down, nn.Parameter) or not (hasattr(module, "is_transposed") or hasattr(module, "_apply_gate")):
        return None
    stored = bool(getattr(module, "is_transposed", False))
    return ExpertsLayout({_first(module): stored, "down_proj": stored}, len(down), _dispatched_inputs)


def _first(module: Any) -> str:
    """Experts without a gate have only an up projection."""
    return "gate_up_proj" if hasattr(module, "gate_up_proj") else "up_proj"


def _dispatched_inputs(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
    hidden, chosen, *_ = *args, *kwargs.values()
    up = _first(module)
    for expert, x in _routed(hidden, chosen, len(module.down_proj)):
        yield expert, up, x
        weight = getattr(module, up)[expert]
        inner = x @ weight if getattr(module, "is_transposed", False) else x @ weight.T
        if getattr(module, "has_bias", False):
            inner = inner + getattr(module, f"{up}_bias")[expert]
        yield expert, "down_proj", module.act_fn(inner) if up == "up_proj" else module._apply_gate(inner)


def _llama4(module: Any) -> ExpertsLayout | None:
    """Llama 4 gives every token to every expert, scaled by a router score that is 0 if it is not routed there."""
    if type(module).__name__ != "Llama4TextExperts":
        return None
    return ExpertsLayout({"gate_up_proj": True, "down_proj": True}, len(module.down_proj), _llama4_inputs)


def _llama4_inputs(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
    (hidden,) = *args, *kwargs.values()
    for expert, tokens in enumerate(hidden.view(len(module.down_proj), -1, hidden.shape[-1])):
        x = tokens[tokens.any(1)]
        yield expert, "gate_up_proj", x
        gate, up = (x @ module.gate_up_proj[expert]).chunk(2, dim=-1)
        yield expert, "down_proj", up * module.act_fn(gate)


def _sorted(module: Any) -> ExpertsLayout | None:
    """One 3-D `weight`, called with tokens sorted by expert and the number of tokens of each (JetMoE)."""
    if not type(module).__name__.endswith("ParallelExperts"):
        return None
    return ExpertsLayout({"weight": False}, len(module.weight), _sorted_inputs)


def _sorted_inputs(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
    tokens, sizes = *args, *kwargs.values()
    for expert, x in enumerate(tokens.split(list(sizes))):
        yield expert, "weight", x


def _dbrx(module: Any) -> ExpertsLayout | None:
    """DBRX stacks the matrices of its experts into 2-D ones and keeps them in a child, to which it passes slices."""
    if type(module).__name__ != "DbrxExperts":
        return None
    return ExpertsLayout({"mlp.w1": False, "mlp.v1": False, "mlp.w2": True}, module.num_experts, _dbrx_inputs)


def _dbrx_inputs(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
    hidden, chosen, *_ = *args, *kwargs.values()
    shape = (module.num_experts, -1, hidden.shape[-1])
    gate, up = module.mlp.w1.view(shape), module.mlp.v1.view(shape)
    for expert, x in _routed(hidden, chosen, module.num_experts):
        yield expert, "mlp.w1", x
        yield expert, "mlp.v1", x
        yield expert, "mlp.w2", module.mlp.activation_fn(x @ gate[expert].T) * (x @ up[expert].T)


_LAYOUTS: tuple[Callable[[Any], ExpertsLayout | None], ...] = (_dispatched, _llama4, _sorted, _dbrx)


def _routed(hidden: Tensor, chosen: Tensor, count: int) -> Iterator[tuple[int, Tensor]]:
    """The tokens of every expert that has any: `hidden` is `(..., in)`, `chosen` holds the experts of each token."""
    tokens = hidden.reshape(-1, hidden.shape[-1])
    chosen = chosen.reshape(len(tokens), -1)
    for expert in torch.unique(chosen).tolist():
        if 0 <= expert < count:
            yield expert, tokens[(chosen == expert).any(1)]
