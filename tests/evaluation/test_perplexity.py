"""Per-language evaluation."""

import math

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from optimum_mwanda import evaluate_languages
from optimum_mwanda.evaluation.windows import _join_small
from tests.conftest import assert_untouched, make_model, make_rows, state_of

Rows = list[dict[str, object]]


def by_hand(model: PreTrainedModel, ids: list[int], length: int, skip: frozenset[int] = frozenset()) -> list[float]:
    """Losses of all tokens but the first, each with the context that its window gives, one window at a time."""
    model = model.eval()
    losses = []
    for start in range(0, len(ids) - 1, length - 1):
        window = ids[start : start + length]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([window]), use_cache=False).logits[0].double()
        chances = logits.log_softmax(-1)
        losses += [-chances[i, token].item() for i, token in enumerate(window[1:]) if token not in skip]
    return losses


@pytest.mark.parametrize("tokens", [2, 7, 8, 9, 22, 23])
def test_every_token_but_the_first_is_predicted_once(tokens: int) -> None:
    model = make_model()
    ids = make_rows("en", rows=1, length=tokens)[0]["input_ids"]
    assert isinstance(ids, list)
    report = evaluate_languages(model, None, [{"language": "en", "input_ids": ids}], sequence_length=8, progress=False)
    expected = by_hand(model, ids, 8)
    score = report.scores["en"]
    assert score.tokens == len(expected) == tokens - 1
    assert score.nll == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(score.nll))
    assert score.bits_per_byte is None


def test_language_that_is_named_twice_is_read_once() -> None:
    model, rows = make_model(), make_rows("en fr", rows=3, length=20)
    options = {"sequence_length": 8, "progress": False}
    once = evaluate_languages(model, None, rows, languages=["fr"], **options)  # type: ignore[arg-type]
    assert evaluate_languages(model, None, rows, languages=["fr", "fr"], **options) == once  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_digest_is_of_the_tokens_and_not_of_the_batches(batch_size: int) -> None:
    model, rows = make_model(), make_rows("en", rows=3, length=20)
    options = {"sequence_length": 8, "progress": False}
    found = evaluate_languages(model, None, rows, batch_size=batch_size, **options).scores["en"]  # type: ignore[arg-type]
    assert found.digest == evaluate_languages(model, None, rows, **options).scores["en"].digest  # type: ignore[arg-type]
    ids = rows[1]["input_ids"]
    assert isinstance(ids, list)
    ids[5] += 1
    assert found.digest != evaluate_languages(model, None, rows, **options).scores["en"].digest  # type: ignore[arg-type]


def test_special_tokens_are_context_and_never_targets(
    sample_model: PreTrainedModel, sample_tokenizer: PreTrainedTokenizerBase
) -> None:
    texts = ["The loop ends.", "A list holds values."]
    report = evaluate_languages(sample_model, sample_tokenizer, {"en": texts[:1]}, sequence_length=64, progress=False)
    ids = sample_tokenizer(texts[0])["input_ids"]
    assert ids[0] == sample_tokenizer.bos_token_id
    losses = by_hand(sample_model, ids, 64)
    score = report.scores["en"]
    assert score.tokens == len(losses) == len(ids) - 1
    assert score.nll == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    both = evaluate_languages(sample_model, sample_tokenizer, {"en": texts}, sequence_length=64, progress=False)
    assert both.scores["en"].tokens == sum(len(sample_tokenizer(text)["input_ids"]) - 1 for text in texts)


def test_bits_per_byte_counts_the_bytes_of_the_text(
    sample_model: PreTrainedModel, sample_tokenizer: PreTrainedTokenizerBase
) -> None:
    texts = ["Функция возвращает список.", "Файл пуст."]
    score = evaluate_languages(sample_model, sample_tokenizer, {"ru": texts}, progress=False).scores["ru"]
    assert score.bytes == sum(len(text.encode()) for text in texts)
    assert score.bits_per_byte == pytest.approx(score.nll * score.tokens / math.log(2) / score.bytes)


def test_text_is_cut_at_the_token_limit_and_so_are_its_bytes(
    sample_model: PreTrainedModel, sample_tokenizer: PreTrainedTokenizerBase
) -> None:
    text = "The function returns a list of names. " * 20
    score = evaluate_languages(
        sample_model, sample_tokenizer, {"en": [text]}, tokens_per_language=30, progress=False
    ).scores["en"]
    kept = sample_tokenizer(text)["input_ids"][:30]
    assert score.tokens == 29
    assert score.bytes == len(sample_tokenizer.decode(kept, skip_special_tokens=True).encode())


def test_batch_size_and_order_of_languages_do_not_matter() -> None:
    model = make_model("qwen3")
    rows = make_rows("en fr sw", rows=3, length=33)
    first = evaluate_languages(model, None, rows, sequence_length=8, batch_size=1, progress=False)
    turned = sorted(rows, key=lambda row: str(row["language"]), reverse=True)  # the rows of a language keep their order
    second = evaluate_languages(model, None, turned, sequence_length=8, batch_size=8, progress=False)
    assert list(first.scores) == list(second.scores) == ["en", "fr", "sw"]
    for language in first.scores:
        assert first.scores[language].tokens == second.scores[language].tokens == 98
        assert first.scores[language].nll == pytest.approx(second.scores[language].nll, rel=1e-5)


def test_windows_are_kept_and_a_short_rest_is_joined_to_its_neighbour() -> None:
    model = make_model()
    ids = make_rows("en", rows=1, length=7 * 4 + 1 + 3)[0]["input_ids"]
    assert isinstance(ids, list)
    report = evaluate_languages(model, None, [{"language": "en", "input_ids": ids}], sequence_length=8, progress=False)
    windows = report.scores["en"].windows
    assert windows is not None
    losses = by_hand(model, ids, 8)
    assert windows.tokens == (7, 7, 7, 10)
    expected = [sum(losses[:7]), sum(losses[7:14]), sum(losses[14:21]), sum(losses[21:])]
    assert windows.nll == pytest.approx(expected, rel=1e-5)
    assert windows.bytes is None
    assert report.scores["en"].nll == pytest.approx(sum(windows.nll) / sum(windows.tokens), rel=1e-12)


def test_bytes_of_windows_are_those_of_their_text(
    sample_model: PreTrainedModel, sample_tokenizer: PreTrainedTokenizerBase
) -> None:
    texts = ["Функция возвращает список. " * 8, "A list holds values. " * 16]
    score = evaluate_languages(
        sample_model, sample_tokenizer, {"ru": texts}, sequence_length=32, progress=False
    ).scores["ru"]
    windows = score.windows
    assert windows is not None
    assert windows.bytes is not None
    assert len(windows.bytes) >= 4
    assert sum(windows.bytes) == score.bytes == sum(len(text.encode()) for text in texts)
    assert sum(windows.tokens) == score.tokens
    # Both texts repeat a sentence, so within a text a token has the same number of bytes everywhere.
    rates = [size / count for size, count in zip(windows.bytes, windows.tokens, strict=True)]
    per_text = [len(text.encode()) / (len(sample_tokenizer(text)["input_ids"]) - 1) for text in texts]
    assert sorted((rates[0], rates[-1])) == pytest.approx(sorted(per_text), rel=0.1)


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 30)), min_size=1, max_size=30),
    st.floats(0.5, 8.0),
)
def test_joined_windows_are_all_windows_in_order_and_none_is_small(sizes: list[tuple[int, int]], least: float) -> None:
    counts, bytes = zip(*sizes, strict=True)
    parts = _join_small(counts, bytes, least)
    assert [index for part in parts for index in range(part.start, part.stop)] == list(range(len(sizes)))
    if len(parts) > 1:
        assert all(sum(counts[part]) >= least and sum(bytes[part]) > 0 for part in parts)
    if all(count >= least and size for count, size in sizes):
        assert len(parts) == len(sizes)


def test_language_of_which_some_rows_are_only_ids_has_no_bits_per_byte(
    sample_model: PreTrainedModel, sample_tokenizer: PreTrainedTokenizerBase
) -> None:
    rows: Rows = [
        {"language": "en", "text": "The loop ends.", "input_ids": None},
        {"language": "en", "text": None, "input_ids": [30, 31, 32]},
    ]
    score = evaluate_languages(sample_model, sample_tokenizer, rows, progress=False).scores["en"]
    assert score.tokens == len(sample_tokenizer("The loop ends.")["input_ids"]) - 1 + 3
    assert score.bits_per_byte is None


def test_stream_gives_what_a_table_in_the_same_order_gives() -> None:
    model = make_model()
    rows = make_rows("en fr", rows=1, length=40)
    stream = Dataset.from_list(rows).to_iterable_dataset()
    streamed = evaluate_languages(model, None, stream, languages=["en", "fr"], sequence_length=8, progress=False)
    assert streamed == evaluate_languages(model, None, rows, sequence_length=8, progress=False)


def test_nan_is_an_error_that_names_the_language() -> None:
    model = make_model()
    with torch.no_grad():
        model.get_input_embeddings().weight[90] = math.nan  # type: ignore[index]
    rows: Rows = [{"language": "en", "input_ids": [5, 6, 7]}, {"language": "sw", "input_ids": [5, 90, 7]}]
    with pytest.raises(FloatingPointError, match="loss of language 'sw' is nan"):
        evaluate_languages(model, None, rows, progress=False)


def test_text_of_special_tokens_alone_is_no_text(
    sample_model: PreTrainedModel, sample_tokenizer: PreTrainedTokenizerBase
) -> None:
    ids = [sample_tokenizer.bos_token_id] * 3
    with pytest.raises(ValueError, match="no text to evaluate in 'en'"):
        evaluate_languages(sample_model, sample_tokenizer, [{"language": "en", "input_ids": ids}], progress=False)


def test_model_is_left_as_it_was() -> None:
    model = make_model()
    before = state_of(model)
    evaluate_languages(model, None, make_rows(), progress=False)
    assert_untouched(model, before)


def test_model_is_left_as_it_was_when_evaluation_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    before = state_of(model)

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", fail)
    with pytest.raises(KeyboardInterrupt):
        evaluate_languages(model, None, make_rows(), progress=False)
    assert_untouched(model, before)


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        ([], {}, "no text to evaluate"),
        ([{"language": "en", "input_ids": [5]}], {}, "no text to evaluate in 'en'"),
        (make_rows(), {"sequence_length": 1}, "at least 2"),
        (make_rows(), {"sequence_length": 65}, "exceeds the model's 64 positions"),
        (make_rows(), {"languages": ["xx"]}, "'xx' was asked for"),
    ],
)
def test_bad_input_is_one_clear_error(rows: Rows, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_languages(make_model(), None, rows, progress=False, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [17, 18, 23, 60])
def test_windows_begin_as_the_tokenizer_begins_a_text(
    sample_model: PreTrainedModel, sample_tokenizer: PreTrainedTokenizerBase, tokens: int
) -> None:
    text = {"en": ["The function returns a list of names, and the loop ends. " * 9]}
    ids = sample_tokenizer(text["en"][0])["input_ids"][:tokens]
    bos, length = ids[0], 16
    report = evaluate_languages(
        sample_model, sample_tokenizer, text, sequence_length=length, tokens_per_language=tokens, progress=False
    )
    # Each window but the first: the beginning, the last token of the window before, and tokens that are predicted.
    windows = [ids[:length]]
    for start in range(length - 1, tokens - 1, length - 2):
        windows.append([bos, *ids[start : start + length - 1]])
    losses = []
    for index, window in enumerate(windows):
        with torch.no_grad():
            logits = sample_model.eval()(input_ids=torch.tensor([window])).logits[0].double()
        chances = logits.log_softmax(-1)
        losses += [-chances[i, token].item() for i, token in enumerate(window[1:]) if i or not index]
    score = report.scores["en"]
    assert score.tokens == len(losses) == tokens - 1
    assert score.nll == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert report.bos == report.evaluation["bos"] == "auto"


def test_reports_with_another_beginning_are_on_other_text(
    sample_model: PreTrainedModel, sample_tokenizer: PreTrainedTokenizerBase
) -> None:
    text = {"en": ["The loop ends. " * 9]}
    options = {"sequence_length": 16, "progress": False}
    auto, none = (
        evaluate_languages(sample_model, sample_tokenizer, text, bos=bos, **options) for bos in ("auto", "none")
    )
    assert auto.scores["en"].tokens == none.scores["en"].tokens
    with pytest.raises(ValueError, match=r"different text or windows in 'en'.*seed and bos"):
        auto.check_text({"en": str(none.scores["en"].digest)})
    assert (
        none.scores["en"].digest
        == evaluate_languages(
            sample_model,
            None,
            [{"language": "en", "input_ids": sample_tokenizer(text["en"][0])["input_ids"]}],
            **options,
        )
        .scores["en"]
        .digest
    )


def test_text_that_does_not_begin_so_itself_is_predicted_from_its_first_token(
    sample_model: PreTrainedModel, sample_tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer = type(sample_tokenizer).from_pretrained(sample_tokenizer.name_or_path)
    tokenizer.chat_template = "{{ messages[0].content }}"
    chat = {"en": [{"text": [{"role": "user", "content": "The loop ends."}]}]}
    score = evaluate_languages(sample_model, tokenizer, chat, progress=False).scores["en"]
    plain = evaluate_languages(sample_model, tokenizer, {"en": ["The loop ends."]}, progress=False).scores["en"]
    assert (score.tokens, score.digest) == (plain.tokens, plain.digest)
