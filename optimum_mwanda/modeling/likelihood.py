"""Whether a model can give text a likelihood."""

import inspect
from typing import TYPE_CHECKING, Any

from .architecture import is_masked

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_measurable(model: "PreTrainedModel") -> None:
    """Checks that a model can give text a likelihood, as far as its type tells.

    Raises:
        ValueError: If it cannot.
    """
    if is_masked(model.config):
        raise ValueError(
            f"{type(model).__name__} is a masked language model, which sees both sides of every token: its perplexity "
            "is not defined. Causal language models and encoder-decoders can be evaluated."
        )
    if model.config.is_encoder_decoder and "labels" not in inspect.signature(model.forward).parameters:
        raise headless(model)
    head: Any = model.get_output_embeddings  # not typed in all versions
    if not model.can_generate() and head() is None:
        raise headless(model)


def headless(model: "PreTrainedModel") -> ValueError:
    """The error for a model that predicts no tokens."""
    return ValueError(
        f"{type(model).__name__} predicts no tokens: load the model with its language-model head, with "
        "AutoModelForCausalLM or, if it is an encoder-decoder, AutoModelForSeq2SeqLM."
    )
