"""Seeing the inputs of each weight while a model runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from .fused_experts import find_experts
from .sharding import own_parts, whole_input
from .weights import PrunableWeight

See = Callable[[str, Tensor], None]
Seen = dict[str, tuple[Any, ...]]


@contextmanager
def watch_inputs(weights: Sequence[PrunableWeight], see: See) -> Iterator[None]:
    """Calls `see(name, X)` with the input of each weight, `X` of shape `(..., in)`, as long as it is open.

    The model's own forward pass is not changed, not even for fused experts: their inputs are computed from the tokens
    that were routed to them. Of a tensor-parallel model, every process sees the whole input of each matrix.
    """
    handles = []
    experts: dict[nn.Module, dict[tuple[int, str], PrunableWeight]] = {}
    try:
        for weight in weights:
            if weight.expert is None:
                hook = _hook(weight, see)
                handles.append(weight.module.register_forward_pre_hook(hook, with_kwargs=True))
            else:
                experts.setdefault(weight.module, {})[weight.expert, weight.parameter] = weight
        for module, found in experts.items():
            handles.append(module.register_forward_pre_hook(_experts_hook(found, see), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(weight: PrunableWeight, see: See) -> Any:
    holder, width = weight.holder, weight.in_features

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        see(weight.name, whole_input(args[0] if args else next(iter(kwargs.values())), holder, width))

    return look


def _experts_hook(weights: dict[tuple[int, str], PrunableWeight], see: See) -> Any:
    held = {place: (weight.name, weight.holder, weight.in_features) for place, weight in weights.items()}

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layout = find_experts(module)
        with own_parts(module):
            for expert, parameter, x in layout.inputs(module, args, kwargs):  # type: ignore[union-attr]
                if (expert, parameter) in held and x.numel():
                    name, holder, width = held[expert, parameter]
                    see(name, whole_input(x, holder, width))

    return look


class RunningOrder:
    """Which inputs the weights of a block read, and in which order, found by running it once.

    Args:
        weights: Weights of one block.
        run: Runs the block.
        ask_first: Gives what a function returns in the first of several processes, which alone calls it; None for a
            single process. The order may depend on the text.
    """

    def __init__(
        self,
        weights: Sequence[PrunableWeight],
        run: Callable[[], Any],
        ask_first: Callable[[Callable[[], Seen]], Seen] | None = None,
    ) -> None:
        self._weights = {weight.name: weight for weight in weights}

        def look() -> Seen:
            seen: Seen = {}
            kept = []  # while a tensor is held, no other has its id

            def see(name: str, x: Tensor) -> None:
                kept.append(x)
                seen.setdefault(name, (id(x), None if x.is_inference() else x._version))

            with watch_inputs(weights, see):
                run()
            return seen

        self._seen = look() if ask_first is None else ask_first(look)

    def groups(self) -> list[list[PrunableWeight]]:
        """Groups of weights that read the same tensor, in the order in which they read it.

        The matrices of a layer's fused experts in one parameter form a group; a weight without input is a group of one.
        """
        groups: dict[tuple[Any, ...], list[PrunableWeight]] = {}
        for name in (*self._seen, *(name for name in self._weights if name not in self._seen)):
            weight = self._weights[name]
            experts = (weight.module, weight.parameter)
            groups.setdefault(experts if weight.expert is not None else self._seen.get(name, (name,)), []).append(
                weight
            )
        return list(groups.values())

    def last_module(self, weights: Sequence[PrunableWeight]) -> nn.Module | None:
        """The module of these weights that is called last; None if one of them was not called at all."""
        called = {self._weights[name].module: position for position, name in enumerate(self._seen)}
        modules = [weight.module for weight in weights]
        return None if any(m not in called for m in modules) else max(modules, key=lambda module: called[module])
