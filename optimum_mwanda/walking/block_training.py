"""Training what stays of a block, so that it gives the dense outputs from the inputs that it has when all is pruned."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..configuration import MWandaConfig
from ..modeling.interrupts import interruptible
from ..modeling.weights import PrunableWeight
from ..pruning.tuning import Outcome, Values, tune
from .recording import Passed
from .replay import BlockCalls


class Piece(NamedTuple):
    """What a batch of calibration text is there for.

    Attributes:
        language: Its language.
        is_held: Whether it judges what is trained on others.
    """

    language: str
    is_held: bool


class DenseStream:
    """The hidden states of the dense model, which go through each block before it is pruned.

    Args:
        calls: The calls of its blocks.
        pieces: What each batch is there for.
    """

    def __init__(self, calls: BlockCalls, pieces: Sequence[Piece]) -> None:
        self._calls = calls
        self._pieces = pieces
        self._run: set[str] = set()
        self.energies = dict.fromkeys((piece.language for piece in pieces), 0.0)

    @property
    def passed(self) -> Passed:
        """The stack as one that has run, once all of it has."""
        return self._calls.passed

    def has_passed(self, name: str) -> bool:
        """Whether it went through a block."""
        return name in self._run

    def __getitem__(self, batch: int) -> Tensor:
        """What the last block gave in a batch."""
        return self._calls.hidden[batch]

    def advance(self, name: str, block: nn.Module) -> None:
        """Runs a block, which must be dense.

        `energies` then holds, by language, the mean over tokens of the sum of squares of what the block adds.
        """
        sums, tokens = dict.fromkeys(self.energies, 0.0), dict.fromkeys(self.energies, 0)
        for number, output in self._calls.outputs(name, block):
            language = self._pieces[number].language
            sums[language] += _squares(output, self._calls.hidden[number]).item()
            tokens[language] += output.shape[:-1].numel()
            self._calls.hidden[number] = output
        self._calls.forget(name)
        self._run.add(name)
        self.energies = {language: total / tokens[language] for language, total in sums.items()}


class BlockTrainer:
    """Trains blocks one after the other.

    The error of a language is the mean square of what a token lacks of the dense block's output, as a share of what the
    dense block adds to a token. What is minimised is the mean over the languages, with their weights.

    Args:
        pieces: What each batch is there for.
        language_weights: Language to its weight.
        config: The settings.
    """

    def __init__(self, pieces: Sequence[Piece], language_weights: Mapping[str, float], config: MWandaConfig) -> None:
        self._pieces, self._language_weights, self._config = pieces, language_weights, config
        held = {piece.language for piece in pieces if piece.is_held}
        self._trained = [number for number, piece in enumerate(pieces) if not piece.is_held]
        # A language of which nothing is held back is judged by what it is trained on.
        self._judging = [number for number, piece in enumerate(pieces) if piece.is_held or piece.language not in held]

    def train(
        self,
        name: str,
        block: nn.Module,
        weights: Sequence[PrunableWeight],
        calls: BlockCalls,
        dense: DenseStream,
    ) -> tuple[list[tuple[PrunableWeight, Tensor]], Outcome]:
        """Trains the entries of some weights of a block that are not zero; the block itself is not changed.

        Args:
            name: Name of the block.
            block: The pruned block, in memory.
            weights: Its pruned weights.
            calls: Calls of the block, and what enters it.
            dense: What it should give.

        Returns:
            Each weight with its new values, none if no epoch was better than the start; and what came out.

        Raises:
            FloatingPointError: If outputs of the block are NaN or infinite before it is trained.
        """
        names = {id(parameter): path for path, parameter in block.named_parameters()}
        holders = {weight.stored: names[id(weight.module.get_parameter(weight.parameter))] for weight in weights}
        start: dict[str, Tensor] = {holders[weight.stored]: weight.holder for weight in weights}
        kept = {path: torch.zeros_like(values, dtype=torch.bool) for path, values in start.items()}
        for weight in weights:
            weight.view_of(kept[holders[weight.stored]]).copy_(weight.matrix != 0)
        module = _Interruptible(block)

        def lack(values: Values, number: int) -> Tensor:
            """Sum of squares of what the outputs of a batch lack."""
            args, kwargs = calls.call(name, number)
            lent = {f"block.{path}": each.to(start[path].dtype) for path, each in values.items()}
            output = functional_call(module, lent, (calls.hidden[number], *args), kwargs)
            return _squares(output if torch.is_tensor(output) else output[0], dense[number])

        share = partial(self._shares, dense)
        trained, judging = share(self._trained), share(self._judging)

        def gradients(values: Values, number: int) -> list[Tensor]:
            with torch.enable_grad():
                loss = lack(values, number) * (trained[number] * len(trained))
            with interruptible():
                found = torch.autograd.grad(loss, list(values.values()), allow_unused=True)
            return [
                torch.zeros_like(each) if one is None else one for each, one in zip(values.values(), found, strict=True)
            ]

        def error(values: Values) -> float:
            return math.fsum(share * lack(values, number).item() for number, share in judging.items())

        values, outcome = tune(
            start,
            kept,
            gradients,
            error,
            self._trained,
            epochs=self._config.reconstruction_epochs,
            learning_rate=self._config.reconstruction_learning_rate,
            seed=self._config.seed,
        )
        if not math.isfinite(outcome.before):
            raise FloatingPointError(f"The outputs of block {name!r} hold NaN or infinite values.")
        changed = [(weight, weight.view_of(values[holders[weight.stored]])) for weight in weights if outcome.epoch]
        return changed, outcome

    def _shares(self, dense: DenseStream, numbers: Sequence[int]) -> dict[int, float]:
        """Number of a batch to the factor with which its sum of squares counts in the error."""
        tokens: Counter[str] = Counter()
        for number in numbers:
            tokens[self._pieces[number].language] += dense[number].shape[:-1].numel()
        shares = {}
        for number in numbers:
            language = self._pieces[number].language
            energy = dense.energies[language] * tokens[language]
            shares[number] = self._language_weights[language] / energy if energy else 0.0
        return shares


class _Interruptible(nn.Module):
    """A block whose forward pass may be interrupted, while whatever is set up around it may not."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with interruptible():
            return self.block(*args, **kwargs)


def _squares(output: Tensor, other: Tensor) -> Tensor:
    """Sum of the squares of a difference, in float32 or wider."""
    wide = torch.promote_types(output.dtype, torch.float32)
    return (output.to(wide) - other.to(wide)).square().sum()
