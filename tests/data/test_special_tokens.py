import logging

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from optimum_mwanda.data.special_tokens import prefix_of, spelled, unknown_id, warn_of_unknown

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


def test_unknown_token_is_one_that_stands_for_text() -> None:
    assert unknown_id(make_tokenizer("$A", unk_token="<unk>", eos_token="</s>")) == 0
    assert unknown_id(make_tokenizer("$A", unk_token="<unk>", pad_token="<unk>")) == 0
    assert unknown_id(make_tokenizer("$A", unk_token="</s>", eos_token="</s>")) is None
    assert unknown_id(make_tokenizer("$A", eos_token="</s>")) is None


def test_unknown_tokens_spell_what_they_stand_for() -> None:
    tokenizer = make_tokenizer("<s> $A </s>", unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    ids = tokenizer("mto ñandú a ñu")["input_ids"]
    assert ids == [1, 6, 0, 4, 0, 3]
    assert spelled(tokenizer, ids[:3], "mto ñandú a ñu") == "mto ñandú"
    assert spelled(tokenizer, ids[1:3], "mto ñandú a ñu", "text_target", add_special_tokens=False) == "mto ñandú"
    assert spelled(tokenizer, ids[:2], "mto ñandú a ñu") == "mto"


def test_language_that_the_tokenizer_hardly_knows_gets_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "optimum_mwanda"):
        warn_of_unknown([("en", 0.05), ("th", 0.98), ("sw", None)], "measured")
    assert caplog.messages == [
        "98 % of the tokens of language 'th' are unknown to the tokenizer: it is hardly measured."
    ]
