"""A Trainer whose model learns from its dense original."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from ..configuration import MWandaConfig
from ..evaluation.report import PerplexityComparison
from ..values import check_number
from .distillation import distillation_loss
from .language_mix import LanguageMix
from .language_weights import need_weights

LOSS_WEIGHT = "loss_weight"
"""Column with the weight of a row in the loss."""


class DistillationTrainer(Trainer):
    """Trains a pruned model to predict what its dense original predicts, by `distillation_loss`.

    A column `loss_weight` weighs rows, by what their language needs for example. With a mean of 1 the loss keeps its
    size:

    ```python
    weights = need_weights(comparison)
    dataset = mix.dataset.map(lambda row: {"loss_weight": weights[row["language"]]})
    ```

    The loss of evaluations is that of language modelling alone.

    Args:
        *args: As for `Trainer`.
        teacher: The dense model. It is not trained, but put on the device and set to evaluation.
        alpha: As in `distillation_loss`.
        temperature: As in `distillation_loss`.
        **kwargs: As for `Trainer`, but for `compute_loss_func`.

    Raises:
        TypeError: If the teacher is no model.
        ValueError: If the teacher is the model itself or has another vocabulary, or a setting is not allowed.
    """

    def __init__(
        self, *args: Any, teacher: nn.Module, alpha: float = 0.5, temperature: float = 1.0, **kwargs: Any
    ) -> None:
        check_number("alpha", alpha, lambda a: 0 <= a <= 1, "a number from 0 to 1")
        check_number("temperature", temperature, lambda t: t > 0, "a number above 0")
        super().__init__(*args, **kwargs, compute_loss_func=self._loss)  # type: ignore[misc]
        check_teacher(teacher, self.model)
        self.teacher = self.accelerator.prepare_model(teacher.eval(), evaluation_mode=True)
        self._alpha = alpha
        self._temperature = temperature
        self._dense_logits: Tensor | None = None
        self._row_weights: Tensor | None = None

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.compute_loss`, which calls the model and then `_loss`."""
        inputs = dict(inputs)
        self._row_weights = inputs.pop(LOSS_WEIGHT, None)
        try:
            if model.training:
                seen = {name: value for name, value in inputs.items() if name != "labels"}
                with torch.no_grad():
                    self._dense_logits = self.teacher(**seen, use_cache=False).logits
            return super().compute_loss(model, inputs, *args, **kwargs)
        finally:
            self._dense_logits = self._row_weights = None

    def _loss(self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        if labels is None:
            raise ValueError(
                "The batches have no labels: give rows with 'labels', as mix_languages(dataset, model) does, or a data "
                "collator that makes them."
            )
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        if self._dense_logits is None:
            return distillation_loss(logits, logits, labels, alpha=0)
        return distillation_loss(
            logits,
            self._dense_logits,
            labels,
            alpha=self._alpha,
            temperature=self._temperature,
            weights=self._row_weights,
            num_items=num_items_in_batch,
        )

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        if LOSS_WEIGHT not in columns:
            columns.append(LOSS_WEIGHT)


def weigh_by_need(
    mix: LanguageMix,
    report: PerplexityComparison,
    temperature: float = MWandaConfig.language_temperature,
    language_column: str = MWandaConfig.language_column,
) -> Any:
    """Gives each row of a mix the weight in the loss that its language needs.

    Args:
        mix: What is trained on.
        report: Dense against pruned, of all languages of the mix.
        temperature: As for `need_weights`.
        language_column: Column that names the language.

    Returns:
        The dataset of the mix with a column `loss_weight`.

    Raises:
        ValueError: If a language was not evaluated.
    """
    weights = need_weights(report, temperature=temperature)
    if missing := [language for language in mix.shares if language not in weights]:
        raise ValueError(
            f"report has no evaluation of {', '.join(map(repr, missing))}: evaluate all languages that are trained, or "
            "name those to train with languages=."
        )
    return mix.dataset.map(lambda row: {LOSS_WEIGHT: weights[row[language_column]]})


def check_teacher(teacher: Any, model: Any) -> None:
    """Checks that a model can learn from another one.

    Raises:
        TypeError: If the teacher is no model.
        ValueError: If they are the same object, or have different vocabularies.
    """
    if not isinstance(teacher, nn.Module):
        raise TypeError(f"teacher is a {type(teacher).__name__}: give the dense model, as from_pretrained loads it.")
    if teacher is model:
        raise ValueError("The teacher is the model that is trained: load the dense model a second time.")
    models: Any = (teacher, model)
    sizes = [each.config.get_text_config().vocab_size for each in models]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"The teacher knows {sizes[0]} tokens, the model {sizes[1]}: give the dense model that was pruned, or "
            "another one with its tokenizer and vocabulary."
        )
