"""Seeing the inputs of each weight while a model runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from .expert_products import ExpertProducts
from .fused_experts import find_experts
from .sharding import is_sharded, own_parts, whole_input
from .weights import PrunableWeight

See = Callable[[str, Tensor], None]
Seen = dict[str, tuple[Any, ...]]


@contextmanager
def watch_inputs(weights: Sequence[PrunableWeight], see: See) -> Iterator[None]:
    """Calls `see(name, X)` with the input of each weight, `X` of shape `(..., in)`, as long as it is open.

    The model's own forward pass is not changed, not even for fused experts: their inputs are seen where the model
    multiplies them with a matrix. Only where that cannot be recognised (matrices that are copied first, as with the
    experts implementation `batched_mm`; Llama 4; experts that are shared out), they are computed once more. Of a
    tensor-parallel model, every process sees the whole input of each matrix.
    """
    experts: dict[nn.Module, dict[tuple[int, str], PrunableWeight]] = {}
    with ExitStack() as stack:
        for weight in weights:
            if weight.expert is None:
                hook = _hook(weight, see)
                stack.callback(weight.module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            else:
                experts.setdefault(weight.module, {})[weight.expert, weight.parameter] = weight
        for module, found in experts.items():
            stack.enter_context(_experts_watched(module, found, see))
        yield


def _hook(weight: PrunableWeight, see: See) -> Any:
    holder, width = weight.holder, weight.in_features

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        see(weight.name, whole_input(args[0] if args else next(iter(kwargs.values())), holder, width))

    return look


@contextmanager
def _experts_watched(module: nn.Module, weights: dict[tuple[int, str], PrunableWeight], see: See) -> Iterator[None]:
    """Sees the inputs while the module computes them; those that are not recognised there are computed afterwards."""
    held = {place: (weight.name, weight.holder, weight.in_features) for place, weight in weights.items()}
    paths = list(dict.fromkeys(path for _, path in held))
    layout: Any = find_experts(module)
    visible = () if any(is_sharded(holder) for _, holder, _ in held.values()) else paths
    run, own = module.forward, vars(module).get("forward")

    def see_expert(expert: int, path: str, x: Tensor) -> None:
        if (expert, path) in held and x.numel():
            name, holder, width = held[expert, path]
            see(name, whole_input(x, holder, width))

    def look(*args: Any, **kwargs: Any) -> Any:
        with ExpertProducts(module, visible, layout.count, see_expert) as products:
            output = run(*args, **kwargs)
        if missing := set(paths) - products.seen:
            with own_parts(module):
                for expert, path, x in layout.inputs(module, args, kwargs):
                    if path in missing:
                        see_expert(expert, path, x)
        return output

    module.forward = look  # not by hooks, which an interrupt would leave half done
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


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
