"""Gradual pruning in any `Trainer`: the sparsity rises while the model is trained."""

import math
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer
from transformers import TrainerControl, TrainerState, TrainingArguments

from ..configuration import MWandaConfig
from ..data.chunks import build_chunks
from ..evaluation.report import PerplexityComparison
from ..legal import Number
from ..modeling.blocks import find_blocks
from ..modeling.compiled import check_not_compiled
from ..modeling.sharding import check_unshared
from ..modeling.weights import find_weights, flat
from ..pruner import MWandaPruner
from ..record.attachment import attach_record
from ..record.parts import RecordedPruning
from ..record.schema import SparsityRecord
from ..record.trainings import begin_training, recount_zeros
from ..record.verification import sparsity_record
from .callback import MWandaCallback
from .caller import resumed_checkpoint
from .gradual import cubic_sparsity, default_interval, pruning_steps
from .keeper import MASKS_KEPT, MaskKeeper
from .pruned_entries import bare_model, read_masks

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class GradualPruningCallback(MWandaCallback):
    """Prunes a model more and more while a `Trainer` trains it (Zhu & Gupta 2017, arXiv 1710.01878).

    Every `interval` steps the model is calibrated again and pruned with `MWandaPruner`, at a sparsity that rises along
    a cubic from that of the model (0 for a dense one) to that of the config. In between masks are kept as by
    `MWandaCallback`, and what was pruned once stays pruned.

    Args:
        config: How to prune, and the sparsity at the end. Patterns N:M have only one sparsity and are refused.
        dataset: Calibration data as for `MWandaPruner.prune`, read again for every pruning; each process reads all of
            it.
        tokenizer: As for `MWandaPruner.prune`.
        interval: Steps between two prunings. None: 100, or a tenth of the training if that is less.
        start: Share of the training after which the sparsity begins to rise.
        stop: Share of the training at which the last pruning takes place.
        report: As for `MWandaCallback`.

    Raises:
        TypeError: If the config is not an `MWandaConfig`.
        ValueError: If a setting is not allowed.
    """

    recipe = "gradual"

    def __init__(
        self,
        config: MWandaConfig,
        dataset: Any = None,
        tokenizer: "PreTrainedTokenizerBase | str | None" = None,
        *,
        interval: int | None = None,
        start: float = 0.0,
        stop: float = 0.5,
        report: PerplexityComparison | None = None,
    ) -> None:
        if not isinstance(config, MWandaConfig):
            raise TypeError(f"config is a {type(config).__name__}: give an MWandaConfig.")
        if config.kept_of is not None:
            raise ValueError(
                f"pattern={config.pattern!r} has only one sparsity, so it cannot be reached gradually: give an "
                "unstructured pattern, or prune at once and train with MWandaCallback."
            )
        if dataset is None and config.needs_statistics:
            raise ValueError(
                f"criterion={config.criterion!r} with allocation={config.allocation!r} needs calibration data: give "
                "dataset."
            )
        Number(at_least=0, below=1).check("start", start)
        Number(above=0, at_most=1).check("stop", stop)
        if stop <= start:
            raise ValueError(f"start={start} and stop={stop} are not allowed: stop must be later than start.")
        if interval is not None:
            Number(at_least=1, whole=True).check("interval", interval)
        super().__init__(None, report)
        self._config, self._dataset, self._tokenizer = config, dataset, tokenizer
        self._interval, self._start, self._stop = interval, start, stop
        self._schedule: dict[int, MWandaConfig] = {}
        self._has_pruned = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes the masks of a model that is pruned already, and decides when to prune how much.

        Raises:
            TypeError: If the calibration data cannot be read.
            ValueError: If the model cannot be pruned so in this training; before its first step.
        """
        if args.load_best_model_at_end:
            raise ValueError(
                "load_best_model_at_end may go back to a checkpoint with another sparsity: leave it out, and choose "
                "among the checkpoints after the last pruning."
            )
        model = bare_model(kwargs["model"])
        self._resume_record(model, state.global_step)
        record = sparsity_record(model)
        self._has_pruned = record is not None and _goes_on(record, state.global_step)
        earlier: list[RecordedPruning] = [] if record is None else [*record.history, record]
        if self._has_pruned:
            earlier.pop()  # what this training has pruned
        self._schedule = self._plan(earlier[-1].achieved_sparsity if earlier else 0.0, state.max_steps)
        if self._config.needs_statistics:
            build_chunks(self._dataset, self._config, model, self._tokenizer)  # bad data must be found before training
        super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Prunes if it is time, and counts the step in the record."""
        assert self.keeper is not None  # since `on_train_begin`
        self.keeper.fill_kept()
        if state.global_step in self._schedule:
            self._prune(self.keeper, bare_model(kwargs["model"]), state.global_step)
        super().on_step_end(args, state, control, **kwargs)

    def _resume_record(self, model: Any, step: int) -> None:
        """Takes the record of the checkpoint, from which a `Trainer` loads the weights only."""
        checkpoint = resumed_checkpoint() if step else None
        record = None if checkpoint is None else sparsity_record(checkpoint)
        if record is not None:
            attach_record(model, record)

    def _plan(self, initial: float, max_steps: int) -> dict[int, MWandaConfig]:
        """Step after which to prune, to the settings of that pruning."""
        final, low = self._config.target_sparsity, self._config.min_block_sparsity
        if final <= initial:
            raise ValueError(
                f"The model has a sparsity of {initial:.3f}, and sparsity={final} is not above it: give a higher one, "
                "or train with MWandaCallback."
            )
        interval = self._interval or default_interval(max_steps)
        first, last = math.floor(self._start * max_steps), max(math.ceil(self._stop * max_steps), 1)
        plan = {}
        for step in pruning_steps(first, last, interval):
            sparsity = cubic_sparsity(step, first, last, final, initial)
            if sparsity > initial:
                plan[step] = self._config.replace(sparsity=sparsity, min_block_sparsity=min(low, sparsity))
        return {**plan, last: self._config}

    def _keep(self, model: nn.Module, optimizer: Optimizer) -> MaskKeeper:
        check_unshared(
            model,
            "Pruning looks at whole matrices, but FSDP or tensor parallelism shares them out: use "
            "DistributedDataParallel or a single process.",
        )
        inside, config = bare_model(model), self._config
        check_not_compiled(inside)
        if hasattr(inside, "peft_config"):
            raise ValueError("The model carries an adapter, and what lies under it must not be pruned: merge it first.")
        weights = flat(find_weights(find_blocks(inside, config.blocks), config.include, config.exclude))
        masks = {weight.stored.removesuffix(".weight"): weight.holder == 0 for weight in weights}
        if sparsity_record(inside) is not None:
            masks |= read_masks(inside)
        return MaskKeeper(model, optimizer, masks)

    def _begin(self, model: Any, steps: int) -> None:
        begin_training(model, self.recipe if self._has_pruned else MASKS_KEPT, steps)

    def _prune(self, keeper: MaskKeeper, model: "PreTrainedModel", step: int) -> None:
        """Prunes to what the schedule says; earlier prunings of this training leave no trace in the record."""
        earlier = sparsity_record(model) if self._has_pruned else None
        MWandaPruner(self._schedule[step], progress=False).prune(model, self._dataset, self._tokenizer)
        masks = {n: matrix.pruned() | (matrix.parameter.detach() == 0) for n, matrix in keeper.matrices.items()}
        keeper.replace_masks(masks)
        if earlier is not None:
            attach_record(model, _with_history_of(model, earlier))
        self._has_pruned = True
        recount_zeros(model)
        begin_training(model, self.recipe, step)


def _goes_on(record: SparsityRecord, step: int) -> bool:
    """Whether a record was written by this callback in the training that is resumed at a step."""
    last = record.training[-1] if record.training else None
    return bool(step) and last is not None and (last.recipe, last.steps) == (GradualPruningCallback.recipe, step)


def _with_history_of(model: Any, earlier: SparsityRecord) -> SparsityRecord:
    """The record of a model, with the history of another one."""
    record = sparsity_record(model)
    assert record is not None
    return SparsityRecord.parse({**record.to_dict(), "history": earlier.to_dict()["history"]})
