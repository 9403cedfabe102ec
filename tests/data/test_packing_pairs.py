"""Pairs of source and target on their way into an encoder-decoder."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MBartConfig,
    MBartForConditionalGeneration,
    NllbTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
    T5Model,
)

from optimum_mwanda import MWandaConfig
from optimum_mwanda.data.chunks import CalibrationChunks, build_chunks

Row = dict[str, Any]
LENGTH = 8


def pack(dataset: Any, model: PreTrainedModel, tokenizer: Any = None, **settings: Any) -> CalibrationChunks:
    return build_chunks(
        dataset, MWandaConfig(**{"sequence_length": LENGTH, "samples_per_language": 4} | settings), model, tokenizer
    )


_SIZES = {"vocab_size": 300, "d_model": 32}
_BART_SIZES = _SIZES | {
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
}
_T5 = T5Config(**_SIZES, d_kv=8, d_ff=48, num_layers=1, num_heads=4, decoder_start_token_id=0)
ENCODER_DECODERS: dict[str, Callable[[], PreTrainedModel]] = {
    "t5": lambda: T5ForConditionalGeneration(_T5),
    "bart": lambda: BartForConditionalGeneration(BartConfig(**_BART_SIZES)),
    "mbart": lambda: MBartForConditionalGeneration(MBartConfig(**_BART_SIZES)),
    "m2m_100": lambda: M2M100ForConditionalGeneration(M2M100Config(**_BART_SIZES)),
}


@pytest.fixture(scope="module")
def pair_model() -> PreTrainedModel:
    """An encoder-decoder that no test changes."""
    return ENCODER_DECODERS["bart"]()


def pairs(*lengths: tuple[int, int], language: str = "sw") -> list[Row]:
    """Tokenised pairs of these source and target lengths; no two of them are equal."""
    return [
        {"language": language, "input_ids": [4 + index] * source, "labels": [100 + index] * target}
        for index, (source, target) in enumerate(lengths)
    ]


_LENGTHS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=20)


@given(st.dictionaries(st.sampled_from(["en", "sw", "yo"]), _LENGTHS, min_size=1), st.integers(1, 5))
def test_batches_hold_every_pair_once_and_only_pairs_of_one_shape(
    pair_model: PreTrainedModel, lengths: dict[str, list[tuple[int, int]]], batch_size: int
) -> None:
    rows = [row for language, sizes in lengths.items() for row in pairs(*sizes, language=language)]
    chunks = pack(rows, pair_model, samples_per_language=20)
    batches = list(chunks.batches(batch_size))
    found = [
        (language, tuple(source.tolist()), tuple(target.tolist()))
        for language, inputs in batches
        for source, target in zip(inputs["input_ids"], inputs["labels"], strict=True)
    ]
    # Batches are rectangular: that every pair comes back as it was says that nothing was padded.
    assert sorted(found) == sorted((row["language"], tuple(row["input_ids"]), tuple(row["labels"])) for row in rows)
    assert all(len(inputs["input_ids"]) <= batch_size for _, inputs in batches)
    shapes = Counter((row["language"], len(row["input_ids"]), len(row["labels"])) for row in rows)
    assert len(batches) == chunks.number_of_batches(batch_size) == sum(-(-n // batch_size) for n in shapes.values())
    assert chunks.tokens == {language: sum(map(sum, sizes)) for language, sizes in lengths.items()}


def test_same_pairs_give_the_same_batches(pair_model: PreTrainedModel) -> None:
    rows = pairs(*[(2, 3), (3, 2)] * 10)
    first, again, other = (pack(rows, pair_model, seed=seed) for seed in (0, 0, 1))
    assert first.fingerprints == again.fingerprints != other.fingerprints


def test_pairs_are_cut_counted_and_limited(pair_model: PreTrainedModel, caplog: pytest.LogCaptureFixture) -> None:
    rows = [*pairs((20, 3), (3, 20)), *pairs((2, 0), (0, 2))]
    rows += [
        {"language": "sw", "input_ids": [5], "labels": None},
        {"language": "sw", "input_ids": [5], "labels": [-100]},
    ]
    chunks = pack(rows, pair_model)
    assert [tuple(v.shape for v in part.values()) for part in chunks.chunks["sw"]] == [
        ((1, 3), (1, 8)),
        ((1, 8), (1, 3)),
    ]
    (coverage,) = chunks.coverage
    assert (coverage.rows, coverage.tokens, coverage.chunks, coverage.empty) == (2, 22, 2, 4)
    assert "4 rows with a null or empty source or target" in caplog.text
    (coverage,) = pack(pairs(*[(2, 2)] * 9), pair_model).coverage
    assert (coverage.rows, coverage.chunks) == (4, 4)


def test_padding_of_pairs_is_dropped_on_both_sides(pair_model: PreTrainedModel) -> None:
    row = {"language": "sw", "input_ids": [1, 1, 7, 8], "attention_mask": [0, 0, 1, 1], "labels": [9, 10, 11, -100]}
    ((part,),) = pack([row], pair_model).chunks.values()
    assert {name: values.tolist() for name, values in part.items()} == {"input_ids": [[7, 8]], "labels": [[9, 10, 11]]}


def test_fingerprint_covers_labels(pair_model: PreTrainedModel) -> None:
    (row,) = pairs((3, 3))
    variants = [row, row | {"labels": [9] * 3}, row | {"input_ids": [9] * 3}]
    assert len({pack([variant], pair_model).fingerprints["sw"] for variant in variants}) == 3


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_model_makes_the_inputs_of_its_decoder_from_the_labels(family: str) -> None:
    model = ENCODER_DECODERS[family]().eval()
    seen = {}

    def look(_: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen.update(kwargs)

    model.get_decoder().register_forward_pre_hook(look, with_kwargs=True)
    ((_, inputs),) = pack(pairs((5, 4), (5, 4)), model).batches(2)
    with torch.no_grad():
        model(**inputs, use_cache=False)
    assert seen["input_ids"].shape == (2, 4)
    assert torch.equal(seen["input_ids"][:, 1:], inputs["labels"][:, :-1])


TEXTS = [{"text": "the cat sat", "target": "le chat"}, {"text": "the mat", "target": "le lit est sur"}]


@pytest.fixture(scope="module")
def translator(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer that puts the source language before a source and the target language before a target."""
    vocabulary = {"</s>": 98, "<mask>": 99, **tokenizer.get_vocab()}
    return NllbTokenizer(vocab=vocabulary, merges=[], src_lang="eng_Latn", tgt_lang="fra_Latn")


CONTAINERS: dict[str, Callable[[list[Row]], Any]] = {
    "list": lambda rows: [{"language": "fr", **row} for row in rows],
    "dict": lambda rows: {"fr": rows},
    "Dataset": lambda rows: Dataset.from_list([{"language": "fr", **row} for row in rows]),
    "stream": lambda rows: Dataset.from_list([{"language": "fr", **row} for row in rows]).to_iterable_dataset(),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_source_and_target_are_tokenised_each_in_its_own_way(
    pair_model: PreTrainedModel, translator: PreTrainedTokenizerBase, container: str
) -> None:
    chunks = pack(CONTAINERS[container](TEXTS), pair_model, translator, sequence_length=32)
    expected = [translator(row["text"], text_target=row["target"]) for row in TEXTS]
    found = [(i["input_ids"][0].tolist(), i["labels"][0].tolist()) for _, i in chunks.batches(1)]
    assert sorted(found) == sorted((e["input_ids"], e["labels"]) for e in expected)
    english, french = translator.convert_tokens_to_ids(["eng_Latn", "fra_Latn"])
    assert all((source[0], target[0]) == (english, french) for source, target in found)


def test_text_is_cut_before_its_end_token(pair_model: PreTrainedModel, translator: PreTrainedTokenizerBase) -> None:
    rows = [{"language": "fr", "text": "the cat " * 9, "target": "le chat " * 9}]
    ((part,),) = pack(rows, pair_model, translator).chunks.values()
    for ids in part.values():
        assert ids.shape == (1, LENGTH)
        assert ids[0, -1] == translator.eos_token_id


@pytest.mark.parametrize(("text", "target"), [(None, "le lit"), ("the cat", None), (" ", "le lit"), ("the cat", "")])
def test_pair_without_one_side_is_skipped(
    pair_model: PreTrainedModel, translator: PreTrainedTokenizerBase, text: Any, target: Any
) -> None:
    (coverage,) = pack({"fr": [*TEXTS, {"text": text, "target": target}]}, pair_model, translator).coverage
    assert (coverage.rows, coverage.empty) == (2, 1)


def test_language_without_a_whole_pair_is_left_out_or_refused(
    pair_model: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*pairs((2, 2)), *pairs((2, 0), language="yo")]
    assert list(pack(rows, pair_model).chunks) == ["sw"]
    assert "they have no row with both a source and a target ('yo')" in caplog.text
    with pytest.raises(ValueError, match=r"asked for have no row .* \('yo'\)"):
        pack(rows, pair_model, languages=["sw", "yo"])


def test_source_and_target_columns_may_have_any_name(
    pair_model: PreTrainedModel, translator: PreTrainedTokenizerBase
) -> None:
    renamed = [{"language": "fr", "source": row["text"], "summary": row["target"], "text": 5} for row in TEXTS]
    chunks = pack(renamed, pair_model, translator, text_column="source", target_column="summary")
    assert chunks.fingerprints == pack({"fr": TEXTS}, pair_model, translator).fingerprints


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(
    ("row", "missing"), [({"text": "a"}, "target"), ({"target": "a"}, "text"), ({"input_ids": [5]}, "text")]
)
def test_encoder_decoder_without_source_or_target_says_what_is_needed(
    pair_model: PreTrainedModel, container: str, row: Row, missing: str
) -> None:
    with pytest.raises(ValueError, match=f"Column '{missing}' is missing.*text_column and target_column.*'labels'"):
        pack(CONTAINERS[container]([row]), pair_model)


def test_texts_without_targets_say_what_is_needed(pair_model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="Column 'target' is missing"):
        pack({"fr": ["le chat"]}, pair_model)


@pytest.mark.parametrize("row", [{"text": 5, "target": "a"}, {"text": "a", "target": ["a"]}])
def test_source_or_target_that_is_no_string_is_refused(pair_model: PreTrainedModel, row: Row) -> None:
    with pytest.raises(TypeError, match=r"Column '(text|target)' holds a (int|list) for language 'fr'.*'labels'"):
        pack({"fr": [row]}, pair_model)


def test_positions_of_pairs_are_refused(pair_model: PreTrainedModel) -> None:
    (row,) = pairs((2, 2))
    with pytest.raises(ValueError, match="encoder-decoder counts its positions itself"):
        pack([row | {"position_ids": [0, 1]}], pair_model)


def test_encoder_decoder_without_head_is_named() -> None:
    with pytest.raises(ValueError, match=r"T5Model takes no labels.*AutoModelForSeq2SeqLM"):
        pack(pairs((2, 2)), T5Model(_T5))
