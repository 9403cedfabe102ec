"""Keeps the masks of a pruned model in any `Trainer`."""

import functools
import logging
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..evaluation.report import PerplexityComparison
from ..record.trainings import begin_training, count_steps
from ..record.verification import sparsity_record, verify_sparsity
from ..sharing.model_card import save_card
from .caller import calling_trainer
from .keeper import MASKS_KEPT, NO_DEEPSPEED, MaskKeeper
from .language_weights import check_report
from .masked_adapters import warn_of_unmasked_adapters
from .pruned_entries import Masks, bare_model

logger = logging.getLogger(__name__)


class MWandaCallback(TrainerCallback):
    """Keeps the pruned weights of a model at zero while a `Trainer`, or one of TRL's, trains it.

    Gradients, moments and weights of pruned entries stay zero, as with `keep_masks`. The share of zeros is logged as
    `sparsity` and goes to every tracker, as `train/sparsity` where trackers say so. The record says how many steps the
    model was trained, in every checkpoint, and the card that the `Trainer` writes gets our section.

    Args:
        masks: As `read_masks` gives them. None: the zeros of the matrices that the model's record names.
        report: The dense model and the trained one, evaluated on the same text, for the card. It can also be set later
            as an attribute: after training, before the push.

    Raises:
        TypeError: If the report is none.

    Attributes:
        report: See above.
        keeper: The `MaskKeeper` of the training that is going on, or of the last one; None before the first.
    """

    recipe = MASKS_KEPT
    """What the record says about the training."""

    def __init__(self, masks: Masks | None = None, report: PerplexityComparison | None = None) -> None:
        if report is not None:
            check_report(report)
        self._masks = masks
        self.report = report
        self.keeper: MaskKeeper | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes the masks.

        Raises:
            ValueError: If masks cannot be kept in this training; before its first step.
        """
        self.close()  # after an error no `on_train_end` is called
        if args.deepspeed is not None:
            raise ValueError(NO_DEEPSPEED)
        trainer = calling_trainer()
        self._check_alone([] if trainer is None else trainer.callback_handler.callbacks)
        self.keeper = self._keep(kwargs["model"], kwargs["optimizer"])
        self._begin(bare_model(kwargs["model"]), state.global_step)
        warn_of_unmasked_adapters(kwargs["model"])
        if trainer is not None:
            # Trackers are called in order, and must find the sparsity in the log.
            callbacks = trainer.callback_handler.callbacks
            callbacks.remove(self)
            callbacks.insert(0, self)
            self._complete_cards(trainer)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Adds the share of zeros to what is logged about training."""
        if logs is not None and self.keeper is not None and ("loss" in logs or "train_loss" in logs):
            logs["sparsity"] = self.keeper.sparsity()
            state.log_history[-1]["sparsity"] = logs["sparsity"]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Counts the step in the record, because the model may be saved next."""
        count_steps(bare_model(kwargs["model"]), state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Lets go of model and optimizer, and checks that the model is what its record says."""
        self.close()
        model = bare_model(kwargs["model"])
        if args.load_best_model_at_end and state.best_global_step:
            count_steps(model, state.best_global_step)
        if sparsity_record(model) is not None:
            verification = verify_sparsity(model)
            if not verification.ok:
                logger.warning("After the training the model is not what its record says. %s", verification)

    def close(self) -> None:
        """Lets go of model and optimizer; needed only after an error, because the end of a training does so too."""
        if self.keeper is not None:
            self.keeper.close()

    def _keep(self, model: nn.Module, optimizer: Optimizer) -> MaskKeeper:
        """Checks the model and takes its masks."""
        return MaskKeeper(model, optimizer, self._masks)

    def _check_alone(self, callbacks: list[Any]) -> None:
        """Checks that no other callback keeps masks, which may be other ones."""
        others = [each for each in callbacks if isinstance(each, MWandaCallback) and each is not self]
        if others:
            raise ValueError(
                f"The Trainer has both {type(self).__name__} and {type(others[0]).__name__}, and either keeps masks: "
                "give one of them."
            )

    def _begin(self, model: Any, steps: int) -> None:
        """Writes into the record that a training begins, or goes on."""
        begin_training(model, self.recipe, steps)

    def _complete_cards(self, trainer: Any) -> None:
        """Lets every card that the `Trainer` writes have our section."""
        write = trainer.create_model_card
        if getattr(write, "_callback", None) is self:
            return

        @functools.wraps(write)
        def create_model_card(*args: Any, **kwargs: Any) -> None:
            write(*args, **kwargs)
            model = bare_model(trainer.model)
            if trainer.is_world_process_zero() and sparsity_record(model) is not None:
                save_card(model, trainer.args.output_dir, repo_id=trainer.hub_model_id, report=self.report)

        create_model_card._callback = self  # type: ignore[attr-defined]
        trainer.create_model_card = create_model_card
