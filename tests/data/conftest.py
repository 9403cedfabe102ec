import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.conftest import make_model

SENTENCES = ["the cat sat on the mat", "le chat est sur le lit", "paka analala juu ya kitanda"]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """A real tokenizer with few entries; it puts `<s>` (id 1) before every text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>", "<s>", "<pad>"], show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", pad_token="<pad>", model_max_length=8
    )


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """A model that no test changes."""
    return make_model()
