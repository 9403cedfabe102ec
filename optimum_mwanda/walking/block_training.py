"""Training blocks, so that they give the dense outputs from the inputs that they have when all is pruned."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..configuration import MWandaConfig
from ..modeling.blocks import first
from ..modeling.interrupts import interruptible
from ..modeling.weights import PrunableWeight
from ..pruning.tuning import Choice, Group, Kept, Outcome, Trained, Values, tune
from .recording import Passed
from .regions import Aim, Region, catching
from .replay import BlockCalls, Reached
from .store import HiddenStates

Changes = list[tuple[PrunableWeight, Tensor]]
"""Weights with their new values."""


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
        store: Makes a place for hidden states.
    """

    def __init__(self, calls: BlockCalls, pieces: Sequence[Piece], store: Callable[[], HiddenStates]) -> None:
        self._calls = calls
        self._pieces = pieces
        self._store = store
        self._run: set[str] = set()

    @property
    def passed(self) -> Passed:
        """The stack as one that has run, once all of it has."""
        return self._calls.passed

    def has_passed(self, name: str) -> bool:
        """Whether it went through a block."""
        return name in self._run

    def advance(self, name: str, block: nn.Module, regions: Sequence[Region] = ()) -> list[Aim]:
        """Runs a block, which must be dense.

        Args:
            name: Name of the block.
            block: The block, in memory.
            regions: What will be trained of it.

        Returns:
            What each of these regions gives.
        """
        aims = [
            Aim(self._calls.hidden if region.module is None else self._store(), region.metric) for region in regions
        ]
        with catching(regions) as caught:
            for number, output in self._calls.outputs(name, block):
                for region, aim in zip(regions, aims, strict=True):
                    if region.module is None:
                        aim.add(output, self._calls.hidden[number])
                    else:
                        aim.outputs.append(caught[region.module])
                        aim.add(caught[region.module], None)
                self._calls.hidden[number] = output
        self._calls.forget(name)
        self._run.add(name)
        return aims


class BlockTrainer:
    """Trains a block, or several that follow each other, to give the outputs of the dense model.

    The error of a token is the square of what it lacks of the dense model's output, in the metric of the region, as a
    share of what the dense model adds to it there, or to a typical token if that is more. What is minimised is the mean
    over the tokens of a language, and over the languages with their weights.

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
        blocks: Mapping[str, nn.Module],
        regions: Sequence[Region],
        aims: Sequence[Aim],
        calls: BlockCalls,
        entering: HiddenStates,
        dense: Mapping[PrunableWeight, Tensor],
    ) -> tuple[Changes, Outcome]:
        """Trains which weights of blocks stay, their values, or one after the other; the blocks are not changed.

        Args:
            blocks: Module path to pruned block, in memory, in the order in which they run.
            regions: What to train, in the order in which it runs.
            aims: What each region should give.
            calls: Calls of the blocks.
            entering: Hidden states that enter the first of them.
            dense: Weights to their values before they were pruned, where masks are trained.

        Returns:
            Weights with their new values, none of a region in which no epoch was better than the start; and what came
            out. Of several trainings, the errors are means, and the epoch is the last.

        Raises:
            FloatingPointError: If outputs are NaN or infinite before training.
        """
        chain = _Chain(blocks, calls)
        names = {id(parameter): path for path, parameter in chain.named_parameters()}
        lent = {path: parameter.detach() for path, parameter in chain.named_parameters()}
        changed: Changes = []
        outcomes = []
        for region, aim in zip(regions, aims, strict=True):
            holders = {weight: names[id(weight.module.get_parameter(weight.parameter))] for weight in region.weights}
            runner = _Runner(chain, region, lent, entering)
            values: Values = {path: lent[path] for path in holders.values()}
            found = []
            if self._config.trains_masks:
                values, outcome = self._choose(values, holders, dense, aim, runner)
                found.append(outcome)
            if self._config.trains_values:
                kept = _marks(values, holders)
                rate = self._config.reconstruction_learning_rate
                values, outcome = self._tune(values, Kept(values, kept), rate, aim, runner)
                found.append(outcome)
            if not all(math.isfinite(outcome.before) for outcome in found):
                *_, name = blocks
                raise FloatingPointError(f"The outputs of block {name!r} hold NaN or infinite values.")
            if any(outcome.epoch for outcome in found):
                changed += [(weight, weight.view_of(values[path])) for weight, path in holders.items()]
            lent |= values
            outcomes.append(Outcome(max(each.epoch for each in found), found[0].before, found[-1].after))
        epochs, before, after = zip(*outcomes, strict=True)
        return changed, Outcome(max(epochs), math.fsum(before) / len(before), math.fsum(after) / len(after))

    def _choose(
        self,
        start: Values,
        holders: Mapping[PrunableWeight, str],
        dense: Mapping[PrunableWeight, Tensor],
        aim: Aim,
        runner: "_Runner",
    ) -> tuple[dict[str, Tensor], Outcome]:
        """Trains which weights stay."""
        whole = {path: values.clone() for path, values in start.items()}
        for weight, path in holders.items():
            weight.view_of(whole[path]).copy_(dense[weight])
        groups = [Group(path, weight.view_of, self._competing(weight)) for weight, path in holders.items()]
        choice = Choice(whole, _marks(start, holders), groups)
        steps = self._config.reconstruction_epochs * len(self._trained)
        # Along a cosine, the mean of the learning rate is half of what it begins with, and a step of Adam is as long.
        return self._tune(start, choice, 2 * self._config.refinement_reach / max(steps, 1), aim, runner)

    def _competing(self, weight: PrunableWeight) -> int:
        """How many entries of a matrix, in row-major order, compete with each other."""
        if self._config.kept_of is not None:
            return self._config.kept_of[1]
        return weight.in_features if self._config.group == "row" else weight.numel

    def _tune(
        self, start: Values, what: Trained, learning_rate: float, aim: Aim, runner: "_Runner"
    ) -> tuple[dict[str, Tensor], Outcome]:
        trained, judging = self._factors(aim, self._trained), self._factors(aim, self._judging)

        def gradients(values: Values, number: int) -> list[Tensor]:
            with torch.enable_grad():
                output = runner.output(values, number)
                factors = trained[number] * len(trained)
                loss = (aim.lack(output, number) * factors).sum()
            scale = _scale(loss, factors, output)
            with interruptible():
                scaled = torch.full_like(loss, scale)
                found = torch.autograd.grad(loss, list(values.values()), scaled, allow_unused=True)
            pairs = zip(values.values(), found, strict=True)
            return [torch.zeros_like(value) if each is None else each / scale for value, each in pairs]

        def error(values: Values) -> float:
            lacks = {number: aim.lack(runner.output(values, number), number) for number in judging}
            parts = [(factors * lacks[number]).sum() for number, factors in judging.items()]
            return math.fsum(torch.stack(parts).tolist())  # one wait for a GPU

        return tune(
            start,
            what,
            gradients,
            error,
            self._trained,
            epochs=self._config.reconstruction_epochs,
            learning_rate=learning_rate,
            seed=self._config.seed,
        )

    def _factors(self, aim: Aim, numbers: Sequence[int]) -> dict[int, Tensor]:
        """Number of a batch to the factors with which the squares of its tokens count in the error."""
        by_language: dict[str, list[int]] = {}
        for number in numbers:
            by_language.setdefault(self._pieces[number].language, []).append(number)
        factors: dict[int, Tensor] = {}
        for language, own in by_language.items():
            energies = aim.energies(own)
            weight = self._language_weights[language] / sum(each.numel() for each in energies)
            factors |= {
                number: torch.where(each > 0, weight / each, 0.0) for number, each in zip(own, energies, strict=True)
            }
        return factors


def _marks(values: Values, holders: Mapping[PrunableWeight, str]) -> dict[str, Tensor]:
    """Marks the entries of some weights that are not zero."""
    marks = {path: torch.zeros_like(each, dtype=torch.bool) for path, each in values.items()}
    for weight, path in holders.items():
        weight.view_of(marks[path]).copy_(weight.view_of(values[path]) != 0)
    return marks


def _scale(loss: Tensor, factors: Tensor, output: Tensor) -> float:
    """What to multiply a loss by, so that the gradient of an output in float16 is neither too small nor too large.

    Args:
        loss: Sum of squares, times the factors.
        factors: One for each token.
        output: The output, of whose type the gradient will be.
    """
    value = loss.item() if output.dtype == torch.float16 else 0.0  # others need none, so that no step waits for a GPU
    if not 0 < value < math.inf:
        return 1.0
    typical = 2 * math.sqrt(value * factors.max().item() / output.numel())
    return float(2.0 ** -(6 + math.floor(math.log2(typical))))


class _Chain(nn.Module):
    """Blocks one after the other, each called as the model called it.

    Args:
        blocks: Module path to block, in the order in which they run.
        calls: Their calls.
    """

    def __init__(self, blocks: Mapping[str, nn.Module], calls: BlockCalls) -> None:
        super().__init__()
        self._blocks = nn.ModuleList(blocks.values())
        self._names, self._calls = [*blocks], calls

    def forward(self, hidden: Tensor, number: int, region: Region) -> Tensor:
        """Runs them as far as a region goes, and returns what it gives.

        Args:
            hidden: What enters the first block in a batch.
            number: Number of the batch.
            region: Ends the run.
        """
        with catching([region]) as caught, _ending_at(region.module):
            try:
                for name, block in zip(self._names, self._blocks, strict=True):
                    args, kwargs = self._calls.call(name, number)
                    with interruptible():  # which whatever is set up around it is not
                        hidden = first(block(hidden, *args, **kwargs))
            except Reached:
                pass
            return hidden if region.module is None else caught[region.module]


class _Runner:
    """Runs blocks, as far as a region goes, with other values in place of their own.

    Args:
        chain: The blocks.
        region: Ends the runs.
        lent: Path of a parameter in the chain to its values.
        entering: What enters the first block.
    """

    def __init__(self, chain: _Chain, region: Region, lent: Values, entering: HiddenStates) -> None:
        self._chain, self._region = chain, region
        self._lent, self._entering = dict(lent), entering

    def output(self, values: Values, number: int) -> Tensor:
        """What the region gives in a batch.

        Args:
            values: Path of a parameter to its values, rounded on the way to the type of the parameter.
            number: Number of the batch.
        """
        rounded = {path: each.to(self._lent[path].dtype) for path, each in values.items()}
        given = (self._entering[number], number, self._region)
        found: Tensor = functional_call(self._chain, {**self._lent, **rounded}, given)
        return found


@contextmanager
def _ending_at(module: nn.Module | None) -> Iterator[None]:
    """Inside the block of code, a run ends when a module has been called."""

    def stop(*_: Any) -> None:
        raise Reached

    if module is None:
        yield
        return
    handle = module.register_forward_hook(stop)
    try:
        yield
    finally:
        handle.remove()
