"""A short training that wins back what pruning took, and keeps every zero."""

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainingArguments

from ..evaluation.report import PerplexityComparison
from ..modeling.positions import resolve_sequence_length
from .blocks_in_turn import LISACallback
from .callback import MWandaCallback
from .distillation_trainer import DistillationTrainer, check_teacher, weigh_by_need
from .language_mix import LanguageMix, mix_languages
from .lent_model import lent_to_training
from .moving_masks import RigLCallback, moving_schedule
from .pruned_entries import bare_model, read_masks, recorded_blocks
from .recovery_settings import LEARNING_RATES, RecoverySettings
from .training_bar import TrainingBar, mapping_bars

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .merge_report import MergeReport


@dataclasses.dataclass(frozen=True)
class Recovery:
    """A recovered model and how it was recovered.

    Attributes:
        model: The model; for adapters another object than the one that was given.
        mix: What it was trained on.
        steps: Optimizer steps.
        merge: What merging adapters cost; None for other recipes.
    """

    model: Any
    mix: LanguageMix
    steps: int
    merge: "MergeReport | None" = None


def recover(
    model: "PreTrainedModel",
    dataset: Any,
    tokenizer: "PreTrainedTokenizerBase | str | None" = None,
    *,
    teacher: "PreTrainedModel | None" = None,
    report: PerplexityComparison | None = None,
    progress: bool = True,
    **settings: Any,
) -> Recovery:
    """Trains a pruned model for a while, with its zeros kept and its languages in balance.

    It is a `Trainer` with `MWandaCallback`, `RigLCallback` or `LISACallback` on `mix_languages`: take these yourself
    for anything that is not here. `GradualPruningCallback` starts from a dense model and is not here.
    Weights in float16 or bfloat16 are trained in float32 and get their own type again at the end.

    Args:
        model: A pruned causal language model; it is trained in place.
        dataset: As for `mix_languages`.
        tokenizer: As for `mix_languages`.
        teacher: The dense model, for the recipe "distill".
        report: The dense against this pruned model, for the mix "need". The recipe "distill" then weighs languages by
            need as well.
        progress: Whether to show a progress bar.
        **settings: Fields of `RecoverySettings`.

    Returns:
        The model, whose record says how it was trained.

    Raises:
        TypeError: If the model, the teacher or the report is none, or the dataset cannot be read.
        ValueError: If a setting is not allowed or lacks what it needs, the model is not pruned or not what its record
            says, or the dataset does not fit. Nothing is changed then.
        FloatingPointError: If the training diverged. The model is of no use then.
    """
    wanted = RecoverySettings(**settings)
    check_settings(wanted, model)
    if (wanted.recipe == "distill") is (teacher is None):
        raise ValueError(
            f"recipe={wanted.recipe!r} {'needs a' if teacher is None else 'takes no'} dense model: give teacher= with "
            "recipe='distill', and only then."
        )
    if teacher is not None:
        check_teacher(teacher, model)
    masks = read_masks(model)  # a model without masks must be refused before its text is read
    steps, size = _steps(wanted, model)
    with mapping_bars(progress):
        mix = mix_languages(
            dataset,
            model,
            tokenizer,
            strategy=wanted.mix,
            report=report,
            temperature=wanted.mix_temperature,
            languages=wanted.languages,
            size=size if not _is_streamed(dataset) else None,
            sequence_length=wanted.sequence_length,
            bos=wanted.bos,
            seed=wanted.seed,
            language_column=wanted.language_column,
            text_column=wanted.text_column,
        )
        rows = mix.dataset
        if wanted.recipe == "distill" and report is not None:
            rows = weigh_by_need(mix, report, wanted.mix_temperature, wanted.language_column)
    with lent_to_training(model, masks):
        if wanted.recipe == "lora":
            from .adapter_recovery import train_adapters

            model, merge = train_adapters(
                model,
                wanted.lora_rank,
                wanted.seed,
                lambda adapted: _train(adapted, rows, steps, wanted, progress, masks),
            )
            return Recovery(model, mix, steps, merge)
        _train(model, rows, steps, wanted, progress, masks, teacher)
    return Recovery(model, mix, steps)


def check_settings(settings: RecoverySettings, model: Any) -> None:
    """Checks that a model is one to train and that the settings fit it, before anything else is looked at.

    Raises:
        TypeError: If it is no model.
        ValueError: If it is wrapped, carries an adapter, or has nothing that can be trained; if it has fewer blocks
            than shall be trained at a time, or masks would never move.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: give a pruned model, as from_pretrained loads it.")
    if bare_model(model) is not model:
        raise ValueError(
            f"The model is inside a wrapper, {type(model).__name__}: give the model itself, and compile it or share it "
            "out afterwards."
        )
    if hasattr(model, "peft_config"):
        raise ValueError(
            "The model carries an adapter: merge it first, with merge_preserving_masks(peft_model). recipe='lora' "
            "makes adapters of its own."
        )
    if settings.recipe != "lora" and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("No parameter of the model can be trained: set requires_grad, or choose recipe='lora'.")
    steps, _ = _steps(settings, model)
    if settings.recipe == "rigl":
        moving_schedule(steps, settings.rigl_interval)
    if settings.recipe == "lisa" and settings.lisa_blocks > (count := len(recorded_blocks(model))):
        raise ValueError(f"lisa_blocks={settings.lisa_blocks} is not allowed: the model has {count} blocks.")


def _steps(settings: RecoverySettings, model: Any) -> tuple[int, int]:
    """Optimizer steps, and chunks for them in all processes."""
    from accelerate import PartialState

    length = resolve_sequence_length(settings.sequence_length, model)
    batch = settings.batch_size * PartialState().num_processes
    steps = max(round(settings.tokens / (batch * length)), 1)
    return steps, steps * batch


def _is_streamed(dataset: Any) -> bool:
    from datasets import IterableDataset

    parts = dataset.values() if isinstance(dataset, dict) else [dataset]
    return any(isinstance(part, IterableDataset) for part in parts)


def _callback(settings: RecoverySettings) -> MWandaCallback:
    if settings.recipe == "rigl":
        return RigLCallback(settings.rigl_alpha, settings.rigl_interval)
    if settings.recipe == "lisa":
        return LISACallback(settings.lisa_blocks, settings.lisa_interval, settings.seed)
    callback = MWandaCallback()
    callback.recipe = settings.recipe
    return callback


def _train(
    model: Any,
    dataset: Any,
    steps: int,
    settings: RecoverySettings,
    progress: bool,
    masks: dict[str, Tensor],
    teacher: Any = None,
) -> None:
    """Trains a model; the masks become those that it has at the end."""
    recipe = settings.recipe
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            str(Path(folder, "training")),
            max_steps=steps,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate or LEARNING_RATES[recipe],
            lr_scheduler_type="cosine",
            warmup_steps=round(0.05 * steps),
            bf16=settings.bf16,
            seed=settings.seed,
            use_cpu=model.device.type == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,  # beside the bar it prints the log
        )
        kind: Any = Trainer
        if recipe == "distill":
            kind = DistillationTrainer
        more = {"teacher": teacher, "alpha": settings.distillation_weight} if recipe == "distill" else {}
        callback = _callback(settings)
        callbacks = [callback, TrainingBar()] if progress else [callback]
        trainer = kind(model=model, args=arguments, train_dataset=dataset, callbacks=callbacks, **more)
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train()
        finally:
            if callback.keeper is not None:  # after an error the callback does not hear of the end
                callback.close()
                kept = callback.keeper.masks()  # of adapted models under other names, with masks that stay
                masks.update((name, pruned) for name, pruned in kept.items() if name in masks)
            for each in filter(None, (trainer.model_wrapped, teacher)):  # with bf16 they would stay in bfloat16
                trainer.accelerator.unwrap_model(each, keep_fp32_wrapper=False)
    if not all(bool(torch.isfinite(weights).all()) for weights in model.parameters()):
        raise FloatingPointError("The training diverged, and weights are not finite: give a lower learning_rate.")
