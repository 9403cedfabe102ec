"""Logits a few tokens at a time: those of a whole batch can be larger than the model."""

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ..modeling.compiled import is_compiled
from ..modeling.offloading import hooks_of
from ..modeling.sharding import is_sharded

_ENTRIES = 2**25


class HeadInParts:
    """While it is open, a model computes only the logits of the last token; `logits` computes those of the others.

    This needs a head that is a plain linear layer, and a model that does with its output nothing else than the few
    things that are known here (it caps or scales it). Each batch is checked for it on its last tokens.

    Args:
        model: The model.
        is_allowed: Whether to try; otherwise the model computes all logits, and `logits` always gives None.
    """

    def __init__(self, model: nn.Module, is_allowed: bool = True) -> None:
        self._model: Any = model
        self._head: Any = self._plain_head() if is_allowed else None
        self._states: list[Tensor] = []
        self._last: Tensor | None = None

    def __enter__(self) -> "HeadInParts":
        if self._head is not None:
            self._head.forward = self._last_tokens
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_up()

    @property
    def is_open(self) -> bool:
        """Whether the model leaves logits out."""
        return self._head is not None

    def logits(self, output: Any) -> Callable[[int, int], Iterator[Tensor]] | None:
        """The logits of the last batch.

        Args:
            output: What the model gave.

        Returns:
            From the number of a row and the number of its first tokens to their logits, some tokens at a time; None if
            they are all in the output.

        Raises:
            RunAgain: If they are neither there nor can be computed; from now on the model computes all logits.
        """
        if self._head is None:
            return None
        states, last, self._states, self._last = self._states, self._last, [], None
        found = getattr(output, "logits", None)
        for finish in self._finishes():
            if len(states) == 1 and last is not None and found is not None and _are_equal(finish(last), found):
                return lambda row, tokens: self._in_parts(states[0][row, :tokens], finish)
        self._give_up()
        raise RunAgain

    def _plain_head(self) -> Any:
        try:
            head = self._model.get_output_embeddings()
        except (AttributeError, NotImplementedError):
            return None
        if type(head) is not nn.Linear or "forward" in vars(head) or head._forward_hooks or head._forward_pre_hooks:
            return None
        # What is brought into memory while the model runs, by the head or by what holds it, is not there afterwards.
        holders = [module for module in self._model.modules() if any(part is head for part in module.modules())]
        can_be_split = not head.weight.is_meta and not is_sharded(head.weight) and not any(map(hooks_of, holders))
        return head if can_be_split and not any(map(is_compiled, self._model.modules())) else None

    def _last_tokens(self, x: Tensor) -> Tensor:
        self._states.append(x)
        found = self._compute(x[..., -1:, :])
        self._last = found.clone()  # what the model does with it may be in place
        return found

    def _compute(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self._head.weight, self._head.bias)

    def _in_parts(self, states: Tensor, finish: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        for part in torch.split(states, max(1, _ENTRIES // len(self._head.weight))):
            yield finish(self._compute(part))

    def _finishes(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """What models do with the output of their heads."""
        config = self._model.config.get_text_config()
        cap, factor, divisor = (getattr(config, name, None) for name in _SETTINGS)
        yield lambda x: x
        if cap:
            yield lambda x: torch.tanh(x / cap) * cap
        if factor:
            yield lambda x: x * factor
        if divisor:
            yield lambda x: x / divisor

    def _give_up(self) -> None:
        if self._head is not None:
            del self._head.forward
        self._head = None


class RunAgain(Exception):
    """The logits of a batch are not known: the model must run over it once more."""


_SETTINGS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def _are_equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.float(), other.float())
