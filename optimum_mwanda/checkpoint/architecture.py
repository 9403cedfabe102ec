"""Which class of transformers loads a model with what it was pruned for."""

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

CAUSAL = "AutoModelForCausalLM"

# An encoder-decoder is among the masked language models, too, and stands here for what it was made for.
_CLASSES = {
    CAUSAL: MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForSeq2SeqLM": MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForImageTextToText": MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    "AutoModelForMaskedLM": MODEL_FOR_MASKED_LM_MAPPING_NAMES,
}


def auto_class(architecture: str) -> str:
    """Name of the class that loads models of an architecture; that of causal language models if none is known."""
    return next((name for name, known in _CLASSES.items() if architecture in known.values()), CAUSAL)
