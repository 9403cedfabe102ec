"""Which class of transformers loads a model with the head that it was pruned for."""

import inspect
from collections.abc import Collection
from typing import Any

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
    MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES,
    MODEL_FOR_PRETRAINING_MAPPING_NAMES,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

CAUSAL = "AutoModelForCausalLM"
SEQ_TO_SEQ = "AutoModelForSeq2SeqLM"

# Encoder-decoders are among the masked language models too, so they come first.
_CLASSES: dict[str, Any] = {
    CAUSAL: MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    SEQ_TO_SEQ: MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForImageTextToText": MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    "AutoModelForMaskedLM": MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "AutoModelForSequenceClassification": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForTokenClassification": MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForQuestionAnswering": MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "AutoModelForMultipleChoice": MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
    "AutoModelForNextSentencePrediction": MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES,
    "AutoModelForSpeechSeq2Seq": MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    "AutoModel": MODEL_MAPPING_NAMES,
    "AutoModelForTextEncoding": MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,
    "AutoModelForPreTraining": MODEL_FOR_PRETRAINING_MAPPING_NAMES,
}


def auto_class(architecture: str, is_encoder_decoder: bool = False) -> str:
    """Name of the class that loads models of an architecture.

    Args:
        architecture: Name of the model's class.
        is_encoder_decoder: What its config says. This decides if the architecture is not known.
    """
    unknown = SEQ_TO_SEQ if is_encoder_decoder else CAUSAL
    return next((name for name, known in _CLASSES.items() if architecture in known.values()), unknown)


def is_masked(config: Any) -> bool:
    """Whether models with this config see both sides of a token, as models that fill gaps do, with any head."""
    is_encoder = not config.is_encoder_decoder and not getattr(config, "is_decoder", False)
    return is_encoder and config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


NO_POOLER = {"add_pooling_layer": False}
"""Argument of encoders that says that there is no pooler. No config keeps it."""


def lacks_only_pooler(model: Any, missing: Collection[str]) -> bool:
    """Whether weights are missing only because a checkpoint of an encoder was saved without its pooler."""
    is_pooler = bool(missing) and all(name.startswith("pooler.") for name in missing)
    return is_pooler and NO_POOLER.keys() <= inspect.signature(type(model).__init__).parameters.keys()


def load_arguments(model: Any) -> dict[str, Any]:
    """What `from_pretrained` has to be told, besides the folder, to load a model as it is in memory."""
    return dict(NO_POOLER) if getattr(model, "pooler", ...) is None and lacks_only_pooler(model, ["pooler."]) else {}
