"""Which class loads a checkpoint."""

import pytest
from transformers import BertConfig, LlamaConfig, T5Config

from optimum_mwanda.modeling.architecture import auto_class, is_masked


@pytest.mark.parametrize(
    ("architecture", "is_encoder_decoder", "expected"),
    [
        ("LlamaForCausalLM", False, "AutoModelForCausalLM"),
        ("BartForCausalLM", True, "AutoModelForCausalLM"),  # the decoder alone
        ("BartForConditionalGeneration", True, "AutoModelForSeq2SeqLM"),
        ("MT5ForConditionalGeneration", True, "AutoModelForSeq2SeqLM"),
        ("M2M100ForConditionalGeneration", True, "AutoModelForSeq2SeqLM"),
        ("XLMRobertaForMaskedLM", False, "AutoModelForMaskedLM"),
        ("Qwen2_5_VLForConditionalGeneration", False, "AutoModelForImageTextToText"),
        ("BartModel", True, "AutoModel"),
        ("LlamaModel", False, "AutoModel"),
        ("XLMRobertaForSequenceClassification", False, "AutoModelForSequenceClassification"),
        ("XLMRobertaForQuestionAnswering", False, "AutoModelForQuestionAnswering"),
        ("BertForMultipleChoice", False, "AutoModelForMultipleChoice"),
        ("BertForNextSentencePrediction", False, "AutoModelForNextSentencePrediction"),
        ("BertForPreTraining", False, "AutoModelForPreTraining"),
        ("GPT2LMHeadModel", False, "AutoModelForCausalLM"),  # which is for pretraining too
        ("MT5EncoderModel", False, "AutoModelForTextEncoding"),
        ("WhisperForConditionalGeneration", True, "AutoModelForSpeechSeq2Seq"),
        ("MyOwnTranslator", True, "AutoModelForSeq2SeqLM"),
        ("MyOwnModel", False, "AutoModelForCausalLM"),
        ("", False, "AutoModelForCausalLM"),
    ],
)
def test_class_is_that_of_the_architecture(architecture: str, is_encoder_decoder: bool, expected: str) -> None:
    assert auto_class(architecture, is_encoder_decoder) == expected


def test_encoders_are_masked_unless_they_were_made_decoders() -> None:
    assert is_masked(BertConfig())
    assert not any(map(is_masked, (BertConfig(is_decoder=True), LlamaConfig(), T5Config())))
