"""RigL in any `Trainer`: masks move to where the gradient is large."""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerControl, TrainerState, TrainingArguments

from ..evaluation.report import PerplexityComparison
from ..legal import Number, read_pattern
from ..modeling.sharding import check_unshared
from ..modeling.weights import PrunableWeight, find_weights, flat
from ..record.trainings import recount_zeros
from ..record.verification import sparsity_record
from .callback import MWandaCallback
from .gradual import default_interval
from .keeper import MaskKeeper
from .masked_matrix import MaskedMatrix
from .pruned_entries import Masks, bare_model, recorded_blocks
from .rigl import redraw_mask, update_fraction

logger = logging.getLogger(__name__)

STOP = 0.75
"""Share of the training after which masks stay, if none is given."""

ALPHA = 0.3
"""Share of the kept weights that is exchanged at first, if none is given; as in the paper."""


class RigLCallback(MWandaCallback):
    """Lets the masks of a pruned model move while a `Trainer` trains it: RigL (Evci et al. 2020, arXiv 1911.11134).

    Every `interval` steps the smallest weights of each matrix are pruned, and as many pruned ones with the largest
    gradients are trained from then on, from zero and with moments of zero. Every matrix, each of its rows if the
    weights of a row competed in the pruning, and every run of M of a pattern N:M keep their number of zeros. In between
    it is an `MWandaCallback`.

    An exchange pays off only if the weights that come back can grow as large as those that went: until then they are
    missing, and if they are still the smallest at the next exchange, they go again. AdamW moves a weight by about the
    learning rate per step, so without `alpha` no weight goes that is larger than the learning rate times `interval`.

    Args:
        alpha: Share of the kept weights that is exchanged at first, however large they are; it falls to zero along half
            a cosine. None: 0.3, but only weights that others can replace until the next exchange.
        interval: Steps between two exchanges. None: 100, or a tenth of the training if that is less.
        stop: Share of the training after which the masks stay.
        masks: As for `MWandaCallback`.
        report: As for `MWandaCallback`.

    Raises:
        ValueError: If a setting is not allowed.
    """

    recipe = "rigl"

    def __init__(
        self,
        alpha: float | None = None,
        interval: int | None = None,
        stop: float = STOP,
        masks: Masks | None = None,
        report: PerplexityComparison | None = None,
    ) -> None:
        if alpha is not None:
            Number(above=0, at_most=1).check("alpha", alpha)
        Number(above=0, at_most=1).check("stop", stop)
        if interval is not None:
            Number(at_least=1, whole=True).check("interval", interval)
        super().__init__(masks, report)
        self._alpha, self._given_interval, self._stop = alpha, interval, stop
        self._interval = self._last_step = self._processes = 1
        self._layout: dict[str, list[tuple[View, int | None]]] = {}
        self._exchanged: list[int] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes the masks, and finds out when they move.

        Raises:
            ValueError: If masks cannot be kept or moved in this training; before its first step.
        """
        self._interval, self._last_step = moving_schedule(state.max_steps, self._given_interval, self._stop)
        self._processes = args.world_size
        self._exchanged = []
        super().on_train_begin(args, state, control, **kwargs)
        if self._masks is None:
            recount_zeros(bare_model(kwargs["model"]))  # more zeros than recorded are kept too

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Asks for the gradients of pruned weights too, if the masks move at the end of this step."""
        assert self.keeper is not None  # since `on_train_begin`
        if self._moves_at(state.global_step + 1):
            for matrix in self.keeper.matrices.values():
                matrix.collect_gradient()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Moves the masks, and counts the step in the record."""
        assert self.keeper is not None  # since `on_train_begin`
        if self._moves_at(state.global_step):
            self._move(self.keeper, update_fraction(state.global_step, self._last_step, self._alpha or ALPHA))
        self.keeper.fill_kept()
        super().on_step_end(args, state, control, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Lets go of model and optimizer, and says so if no mask has moved."""
        super().on_train_end(args, state, control, **kwargs)
        if self._exchanged and not any(self._exchanged):
            logger.warning(
                "No mask has moved: all kept weights are larger than what a new one can reach until the next exchange, "
                "the learning rate times the interval of %d steps. Train longer, with a longer interval or a higher "
                "learning rate, or give alpha to exchange them nevertheless.",
                self._interval,
            )

    def _move(self, keeper: MaskKeeper, fraction: float) -> None:
        """Exchanges weights of all matrices."""
        rates = [float(group["lr"]) for group in keeper.optimizer.param_groups if group.get("lr") is not None]
        reach = max(rates, default=math.inf) * self._interval
        largest = math.inf if self._alpha else reach
        moved, exchanged, out_of_reach = {}, 0, 0
        for name, matrix in keeper.matrices.items():
            redrawn = self._redrawn(name, matrix, fraction, largest)
            if redrawn is not None:
                moved[name] = redrawn
                gone = matrix.parameter.detach()[redrawn & ~matrix.pruned()].abs()
                exchanged, out_of_reach = exchanged + gone.numel(), out_of_reach + int((gone > reach).sum())
        if not self._exchanged and out_of_reach > exchanged / 2:
            logger.warning(
                "Most weights that were exchanged are larger than %.1e, about what new ones can reach in the %d steps "
                "until the next exchange, so these will go again before they have replaced them. Leave out alpha, or "
                "train longer, with a longer interval or a higher learning rate.",
                reach,
                self._interval,
            )
        self._exchanged.append(exchanged)
        keeper.replace_masks(moved)

    def _moves_at(self, step: int) -> bool:
        return step % self._interval == 0 and step < self._last_step

    def _redrawn(self, name: str, matrix: MaskedMatrix, fraction: float, largest: float) -> Tensor | None:
        """The next mask of a matrix, the same in all processes; None if it stays."""
        gradient = matrix.take_gradient()
        if gradient is None:
            return None
        if self._processes > 1:
            torch.distributed.all_reduce(gradient)
        if not gradient.isfinite().all():  # the loss scaler has skipped the step
            return None
        weight, pruned = matrix.parameter.detach(), matrix.pruned()
        redrawn = pruned.clone()
        for view, run in self._layout[name]:
            view(redrawn).copy_(redraw_mask(view(weight), view(gradient), view(pruned), fraction, run, largest))
        return redrawn

    def _keep(self, model: nn.Module, optimizer: Optimizer) -> MaskKeeper:
        check_unshared(
            model,
            "RigL compares all weights of a matrix, but FSDP or tensor parallelism shares them out: use "
            "DistributedDataParallel, or MWandaCallback, whose masks do not move.",
        )
        keeper = super()._keep(model, optimizer)
        try:
            self._layout = find_layout(bare_model(model), keeper.matrices)
            if not any(matrix.parameter.requires_grad for matrix in keeper.matrices.values()):
                raise ValueError(
                    "None of the pruned matrices is trained, so their masks cannot move: set requires_grad, or use "
                    "MWandaCallback."
                )
        except BaseException:
            keeper.close()
            raise
        return keeper


def moving_schedule(steps: int, interval: int | None = None, stop: float = STOP) -> tuple[int, int]:
    """When masks move in a training.

    Args:
        steps: Optimizer steps of the training.
        interval: As for `RigLCallback`.
        stop: As for `RigLCallback`.

    Returns:
        The interval, and the step from which on masks stay.

    Raises:
        ValueError: If they would never move.
    """
    interval = interval or default_interval(steps)
    last_step = math.ceil(stop * steps)
    if interval >= last_step:
        raise ValueError(
            f"Masks that move every {interval} steps, and stay from step {last_step} on (stop={stop} of {steps} "
            "steps), would never move: give a shorter interval or train longer."
        )
    return interval, last_step


View = Callable[[Tensor], Tensor]
"""Takes a tensor of the shape of a parameter, and gives a matrix in it as `(out, in)`, without a copy."""


def find_layout(model: Any, matrices: dict[str, MaskedMatrix]) -> dict[str, list[tuple[View, int | None]]]:
    """Finds what keeps its number of zeros when masks move.

    Args:
        model: The model, without wrappers.
        matrices: Those whose masks move, by name.

    Returns:
        Name to the `(out, in)` matrices that the parameter holds, those of several experts for example, and of each how
        many consecutive inputs keep their number of zeros; None for the whole matrix.

    Raises:
        ValueError: If a parameter holds several matrices in a layout that is not known.
    """
    record = sparsity_record(model)
    found: dict[str, list[PrunableWeight]] = {}
    settings = {} if record is None else record.settings
    pattern = None if record is None else read_pattern(record.pattern)
    if record is not None:
        for weight in flat(find_weights(recorded_blocks(model), settings.get("include"), settings.get("exclude", ()))):
            found.setdefault(weight.stored.removesuffix(".weight"), []).append(weight)
    layout: dict[str, list[tuple[View, int | None]]] = {}
    for name, matrix in matrices.items():
        if name not in found and matrix.parameter.dim() != 2:
            raise ValueError(
                f"{name!r} holds several matrices in one parameter, but no record says which: give no masks for it, or "
                "use MWandaCallback, whose masks do not move."
            )
        layout[name] = [
            (weight.view_of, pattern[1] if pattern else weight.in_features if settings.get("group") == "row" else None)
            for weight in found.get(name, [])
        ] or [(lambda tensor: tensor, None)]
    return layout
