import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from optimum_mwanda.data.special_tokens import prefix_of

VOCABULARY = {word: index for index, word in enumerate(["<unk>", "<s>", "<fr>", "</s>", "a", "1", "mto"])}


def make_tokenizer(template: str, vocabulary: dict[str, int] = VOCABULARY, **special: str) -> PreTrainedTokenizerBase:
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special.get("unk_token")))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = [(name, vocabulary[name]) for name in template.split() if name != "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=names)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.mark.parametrize(
    ("template", "prefix"),
    [("$A", ()), ("<s> $A", (1,)), ("$A </s>", ()), ("<s> <fr> $A </s>", (1, 2)), ("</s> $A", (3,))],
)
def test_prefix_is_what_the_tokenizer_writes_before_a_text(template: str, prefix: tuple[int, ...]) -> None:
    assert prefix_of(make_tokenizer(template, unk_token="<unk>")) == prefix


def test_token_that_is_named_and_never_written_is_no_prefix() -> None:
    assert prefix_of(make_tokenizer("$A", unk_token="<unk>", bos_token="<s>")) == ()


def test_prefix_is_found_where_an_unknown_text_leaves_no_token() -> None:
    vocabulary = {"<s>": 0, "1": 1}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    assert prefix_of(PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")) == (0,)
