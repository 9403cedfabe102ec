"""Encoder-decoders: the likelihood of targets given their sources."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    GPT2ForSequenceClassification,
    LlamaModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Model,
)

from optimum_mwanda import compare, evaluate_languages
from optimum_mwanda.evaluation.reading import read_held_out
from optimum_mwanda.evaluation.scores import LanguageScore
from optimum_mwanda.evaluation.settings import EvaluationSettings
from tests.conftest import assert_untouched, make_model, make_rows, state_of
from tests.storage.families import make_family

Row = dict[str, Any]


@pytest.fixture(scope="module")
def t5() -> PreTrainedModel:
    """An encoder-decoder that no test changes."""
    return make_family("t5")


@pytest.fixture(scope="module")
def translator() -> PreTrainedTokenizerBase:
    """A tokenizer of words that puts a language code before a text and `</s>` behind it."""
    words = ["<pad>", "</s>", "<unk>", "<fr>", "moja", "mbili", "tatu", "nne", "trois", "élève"]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="<fr> $A </s>", special_tokens=[("<fr>", 3), ("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=["<fr>"],
    )


def loss_of(model: PreTrainedModel, row: Row) -> float:
    """The sum over the labels of a row, as transformers computes it."""
    labels = torch.tensor([row["labels"]])
    with torch.no_grad():
        loss = model.eval()(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss
    return loss.item() * int((labels != -100).sum())


def score_of(model: PreTrainedModel, rows: Any, tokenizer: Any = None, **options: Any) -> LanguageScore:
    (score,) = evaluate_languages(model, tokenizer, rows, progress=False, **options).scores.values()
    return score


def make_pairs(*lengths: tuple[int, int], language: str = "sw") -> list[Row]:
    """Tokenised pairs of these source and target lengths, of other tokens each."""
    return [
        {
            "language": language,
            "input_ids": [(3 + 5 * number + 7 * index) % 96 for index in range(source)],
            "labels": [(4 + 11 * number + 3 * index) % 96 for index in range(target)],
        }
        for number, (source, target) in enumerate(lengths)
    ]


@pytest.mark.parametrize("side", ["input_ids", "labels"])
def test_digest_of_pairs_is_that_of_both_sides(t5: PreTrainedModel, side: str) -> None:
    rows = make_pairs((5, 4), (3, 6), (5, 4))
    digests = {size: read_held_out(t5, None, rows, EvaluationSettings(batch_size=size)).digests for size in (1, 8)}
    assert digests[1] == digests[8]
    rows[2][side][1] += 1
    assert read_held_out(t5, None, rows, EvaluationSettings()).digests != digests[8]


@pytest.mark.parametrize("family", ["t5", "m2m_100"])
def test_loss_of_every_row_is_that_of_transformers(family: str) -> None:
    model = make_family(family)
    rows = make_pairs((5, 4), (3, 6), (5, 4), (2, 5))
    report = evaluate_languages(
        model, None, [{**row, "language": str(i)} for i, row in enumerate(rows)], progress=False
    )
    for row, score in zip(rows, report.scores.values(), strict=True):
        assert score.tokens == len(row["labels"])
        assert score.nll * score.tokens == pytest.approx(loss_of(model, row), rel=1e-5)
        assert score.bytes is None


_SIZES = st.lists(st.tuples(st.integers(1, 4), st.integers(3, 5)), min_size=1, max_size=12)


@settings(max_examples=25)
@given(_SIZES, st.integers(1, 4), st.integers(0, 3))
def test_windows_are_the_rows_in_their_order_whatever_the_batches(
    t5: PreTrainedModel, sizes: Sequence[tuple[int, int]], batch_size: int, seed: int
) -> None:
    rows = make_pairs(*sizes)
    score = score_of(t5, rows, batch_size=batch_size, seed=seed)
    alone = score_of(t5, rows, batch_size=1, seed=seed)
    assert score.windows is not None
    assert alone.windows is not None
    assert sorted(score.windows.tokens) == sorted(len(row["labels"]) for row in rows)
    assert sorted(score.windows.nll) == pytest.approx(sorted(loss_of(t5, row) for row in rows), rel=1e-4)
    assert score.windows.tokens == alone.windows.tokens
    assert score.windows.nll == pytest.approx(alone.windows.nll, rel=1e-4)
    assert score.nll == pytest.approx(sum(score.windows.nll) / sum(score.windows.tokens))


def test_row_with_less_than_half_of_the_mean_is_joined_to_its_neighbour(t5: PreTrainedModel) -> None:
    score = score_of(t5, make_pairs((3, 8), (3, 1), (3, 8), (3, 9)))  # a mean of 6.5
    assert score.windows is not None
    assert len(score.windows.tokens) == 3
    assert sum(score.windows.tokens) == 26
    assert 1 not in score.windows.tokens


def test_ignored_labels_and_padding_do_not_count(t5: PreTrainedModel) -> None:
    (row,) = make_pairs((4, 3))
    padded = {
        **row,
        "input_ids": [0, *row["input_ids"]],
        "attention_mask": [0, 1, 1, 1, 1],
        "labels": [*row["labels"], -100, -100],
    }
    assert score_of(t5, [padded]) == score_of(t5, [row])
    assert score_of(t5, [padded]).nll * 3 == pytest.approx(loss_of(t5, row), rel=1e-5)


def test_special_tokens_are_context_and_bytes_are_those_of_targets(
    t5: PreTrainedModel, translator: PreTrainedTokenizerBase
) -> None:
    rows = [{"language": "fr", "text": "moja tatu mbili", "target": "trois élève  trois"}]
    encoded = translator(rows[0]["text"], text_target=rows[0]["target"])
    assert encoded["labels"] == [3, 8, 9, 8, 1]
    score = score_of(t5, rows, translator)
    # The code is in the context of all targets, and would be in that of the end token.
    with torch.no_grad():
        logits = t5(input_ids=torch.tensor([encoded["input_ids"]]), labels=torch.tensor([encoded["labels"]])).logits[0]
    chances = logits.log_softmax(-1)
    expected = -sum(chances[position, token].item() for position, token in [(1, 8), (2, 9), (3, 8)])
    assert score.tokens == 3
    assert score.nll * 3 == pytest.approx(expected, rel=1e-5)
    assert score.bytes == len("trois élève  trois".encode())
    assert score.bits_per_byte == pytest.approx(expected / math.log(2) / score.bytes)
    tokenised = [{"language": "fr", "input_ids": encoded["input_ids"], "labels": encoded["labels"]}]
    same = score_of(t5, tokenised, translator)
    assert (same.nll, same.tokens, same.bytes) == (score.nll, 3, None)


def test_columns_may_have_any_name(t5: PreTrainedModel, translator: PreTrainedTokenizerBase) -> None:
    row = {"text": "moja mbili", "target": "trois"}
    renamed = [{"lang": "fr", "source": row["text"], "summary": row["target"], "text": 5}]
    columns = {"language_column": "lang", "text_column": "source", "target_column": "summary"}
    assert score_of(t5, renamed, translator, **columns) == score_of(t5, {"fr": [row]}, translator)


def test_targets_are_cut_at_both_limits_and_so_are_their_bytes(
    t5: PreTrainedModel, translator: PreTrainedTokenizerBase
) -> None:
    rows = {"fr": [{"text": "moja", "target": " ".join(["trois"] * 6)}] * 3}
    score = score_of(t5, rows, translator, sequence_length=4)  # code, two words, end
    assert (score.tokens, score.bytes) == (6, 3 * len("trois trois"))
    score = score_of(t5, rows, translator, tokens_per_language=8 + 3)  # then code and two words
    assert (score.tokens, score.bytes) == (6 + 2, len(rows["fr"][0]["target"]) + len("trois trois"))


def test_windows_have_the_bytes_of_their_own_targets(t5: PreTrainedModel, translator: PreTrainedTokenizerBase) -> None:
    targets = ["trois trois", "élève élève", "trois élève nne"]
    score = score_of(t5, {"fr": [{"text": "moja", "target": target} for target in targets]}, translator)
    assert score.windows is not None
    assert score.windows.bytes is not None
    assert sorted(score.windows.bytes) == sorted(len(target.encode()) for target in targets)


def test_two_models_are_compared_on_the_same_rows(t5: PreTrainedModel) -> None:
    rows = make_pairs(*[(3, 4), (4, 5)] * 3)
    other = make_family("t5", seed=1)
    change = compare(t5, other, None, rows, progress=False).change("pruned").languages["sw"]
    expected = sum(loss_of(other, row) - loss_of(t5, row) for row in rows) / sum(len(row["labels"]) for row in rows)
    assert change.value == pytest.approx(expected, rel=1e-3)
    assert change.low < change.value < change.high


def test_model_is_left_as_it_was() -> None:
    model = make_family("t5").train()
    before = state_of(model)
    evaluate_languages(model, None, make_pairs((3, 4)), progress=False)
    assert_untouched(model, before)


def test_target_of_special_tokens_alone_is_no_text(t5: PreTrainedModel, translator: PreTrainedTokenizerBase) -> None:
    rows = [{"language": "fr", "input_ids": [4, 5], "labels": [3, 1]}]
    with pytest.raises(ValueError, match="no text to evaluate in 'fr'"):
        evaluate_languages(t5, translator, rows, progress=False)


def test_rows_without_targets_say_what_is_needed(t5: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=r"needs a source and a target: .*target_column"):
        evaluate_languages(t5, None, make_rows(), progress=False)


_BERT = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertLMHeadModel])
def test_masked_language_models_are_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__} is a masked language model.*not defined.*can be evaluated"):
        evaluate_languages(kind(BertConfig(**_BERT)), None, make_rows(), progress=False)


def test_bert_that_was_made_a_decoder_is_a_causal_model() -> None:
    model = BertLMHeadModel(BertConfig(**_BERT, is_decoder=True))
    ids = make_rows("en", rows=1, length=8)[0]["input_ids"]
    score = score_of(model, [{"language": "en", "input_ids": ids}])
    with torch.no_grad():
        inputs = torch.tensor([ids])
        assert score.nll == pytest.approx(model.eval()(input_ids=inputs, labels=inputs).loss.item(), rel=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LlamaModel(make_model().config),
        lambda: GPT2ForSequenceClassification(make_model("gpt2").config),
        lambda: T5Model(make_family("t5").config),
    ],
)
def test_models_that_predict_no_tokens_are_refused(make: Any) -> None:
    model = make()
    model.config.pad_token_id = 0
    rows = make_pairs((3, 4)) if model.config.is_encoder_decoder else make_rows()
    with pytest.raises(ValueError, match=f"{type(model).__name__} predicts no tokens: load .* with AutoModelFor"):
        evaluate_languages(model, None, rows, progress=False)


def test_unknown_text_is_predicted_and_counted(
    t5: PreTrainedModel, translator: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    rows = {"th": [{"text": "moja", "target": "trois แม่น้ำ trois"}]}
    score = score_of(t5, rows, translator)
    assert (score.tokens, score.unknown, score.bytes) == (3, 1, len(rows["th"][0]["target"].encode()))
    assert "33 % of the tokens of language 'th' are unknown to the tokenizer: it is hardly measured" in caplog.text
    cut = score_of(t5, rows, translator, tokens_per_language=3)
    assert (cut.tokens, cut.unknown, cut.bytes) == (2, 1, len("trois แม่น้ำ".encode()))


def test_unknown_words_are_targets_of_a_decoder(translator: PreTrainedTokenizerBase) -> None:
    text = "moja โมจา nne แม่น้ำ"
    score = score_of(make_model(), {"sw": [text] * 9}, translator, sequence_length=8)
    assert (score.tokens, score.unknown, score.bytes) == (4 * 9, 2 * 9, 9 * len(text.encode()))
    assert score.windows is not None
    assert sum(score.windows.bytes or ()) == score.bytes
    assert LanguageScore.from_dict(score.to_dict()) == score
    older = {name: value for name, value in score.to_dict().items() if name != "unknown"}
    assert LanguageScore.from_dict(older).unknown_share is None
    cut = score_of(make_model(), {"sw": [text]}, translator, tokens_per_language=3)
    assert (cut.tokens, cut.bytes) == (2, len("moja โมจา".encode()))
