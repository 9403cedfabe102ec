from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from optimum_mwanda import MWandaConfig, evaluate_languages
from optimum_mwanda.data.chunks import build_chunks
from optimum_mwanda.data.excerpt import excerpt
from optimum_mwanda.data.special_tokens import spelled
from tests.conftest import SAMPLE_MODEL
from tests.data.conftest import SENTENCES
from tests.storage.families import make_family

CORPUS = [*SENTENCES, "ababab abc cab bca aabb", "mto una maji mengi sana", "1 22 333 4444"]
SPECIAL = ["<unk>", "<s>", "</s>"]


def finish(tokenizer: Tokenizer, trainer: Any) -> PreTrainedTokenizerBase:
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", tokenizer.token_to_id("<s>")), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def wordpiece() -> PreTrainedTokenizerBase:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>", max_input_chars_per_word=12))  # type: ignore[call-arg]
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return finish(tokenizer, trainers.WordPieceTrainer(vocab_size=90, special_tokens=SPECIAL, show_progress=False))


def unigram() -> PreTrainedTokenizerBase:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=70, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    return finish(tokenizer, trainer)


def whole_text_bpe() -> PreTrainedTokenizerBase:
    """As Gemma and Llama have it: no pre-tokenizer, so that the whole text is one word to merge."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return finish(tokenizer, trainers.BpeTrainer(vocab_size=120, special_tokens=SPECIAL, show_progress=False))


def sample() -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(SAMPLE_MODEL)
    return tokenizer


MAKERS: tuple[Callable[[], PreTrainedTokenizerBase], ...] = (sample, wordpiece, unigram, whole_text_bpe)


@pytest.fixture(scope="module", params=MAKERS, ids=lambda make: make.__name__)
def any_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = request.param()
    return tokenizer


WORDS = st.one_of(
    st.text("abcmto", min_size=1, max_size=14),
    st.sampled_from([*" ".join(CORPUS).split(), "Ελλάδα", "ñandú", "日本語", "मकान", "</s>", "e\u0301", "x" * 90]),
    st.text(max_size=4).filter(lambda text: not any("\ud800" <= sign <= "\udfff" for sign in text)),
)
TEXTS = st.lists(
    st.tuples(WORDS, st.sampled_from([" ", "  ", "\n", "\t ", "\u3000", "", ". "])), min_size=8, max_size=60
)


@settings(max_examples=60)
@given(parts=TEXTS, count=st.integers(1, 40), times=st.integers(10, 40), special=st.booleans())
def test_first_tokens_are_those_of_the_whole_text(
    any_tokenizer: PreTrainedTokenizerBase, parts: list[tuple[str, str]], count: int, times: int, special: bool
) -> None:
    text = "".join(word + space for word, space in parts) * times
    start = excerpt(any_tokenizer, text, count, add_special_tokens=special)
    assert text.startswith(start)
    whole, part = (any_tokenizer(each, add_special_tokens=special)["input_ids"] for each in (text, start))
    assert part[:count] == whole[:count]


def test_long_text_is_read_as_far_as_needed(any_tokenizer: PreTrainedTokenizerBase) -> None:
    text = "the cat sat on the mat and le chat est sur le lit " * 2000
    assert len(excerpt(any_tokenizer, text, 30)) < len(text) / 20
    assert excerpt(any_tokenizer, text.replace(" ", ""), 30) == text.replace(" ", "")
    assert excerpt(any_tokenizer, "the cat", 30) == "the cat"


class Counting(PreTrainedTokenizerFast):  # type: ignore[misc]
    """Counts the characters that it is given."""

    read = 0

    def __call__(self, text: Any = None, text_target: Any = None, **options: Any) -> Any:
        type(self).read += len(text or "") + len(text_target or "")
        return super().__call__(text, text_target=text_target, **options)


@pytest.fixture
def counting(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    Counting.read = 0
    return Counting(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", unk_token="<unk>", pad_token="<pad>")


LONG = "the cat sat on the mat " * 20_000


def test_calibration_and_evaluation_read_no_more_than_they_use(
    model: PreTrainedModel, counting: Counting, tokenizer: PreTrainedTokenizerBase
) -> None:
    texts = {"en": [LONG, "the cat sat on the mat"]}
    config = MWandaConfig(sequence_length=8, samples_per_language=6, bos="none")
    chunks = build_chunks(texts, config, model, counting)
    short = build_chunks({"en": [LONG[:2300], "the cat sat on the mat"]}, config, model, tokenizer)
    assert chunks.fingerprints == short.fingerprints
    assert chunks.coverage[0].chunks == 6
    score = evaluate_languages(model, counting, texts, tokens_per_language=50, progress=False).scores["en"]
    assert score.tokens == 49
    assert score.bytes == len(spelled(tokenizer, tokenizer(LONG)["input_ids"][:50], LONG).encode())
    make_pairs = {"fr": [{"text": LONG, "target": LONG}]}
    t5 = make_family("t5")
    pair = build_chunks(make_pairs, config, t5, counting).chunks["fr"][0]
    assert pair["input_ids"].shape == pair["labels"].shape == (1, 8)
    assert evaluate_languages(t5, counting, make_pairs, sequence_length=8, progress=False).scores["fr"].tokens == 7
    assert Counting.read < len(LONG) / 4
