"""Text that a model writes from nothing: what it holds possible, and nothing of the caller's changes."""

import copy
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, IterableDataset, concatenate_datasets
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from optimum_mwanda import MWandaConfig, MWandaPruner, write_calibration_text
from optimum_mwanda.data.chunks import build_chunks

from ..conftest import SIZES, assert_untouched, make_model, state_of

BOS, EOS = 94, 95
MANY = {"chunks": 200, "batch_size": 200}


def make_tokenizer(writes_bos: bool = True, ends: bool = False, **special: str) -> PreTrainedTokenizerFast:
    """Word `wN` has the id N."""
    words = Tokenizer(
        WordLevel({"<unk>": 0, **{f"w{i}": i for i in range(1, 94)}, "<s>": BOS, "</s>": EOS}, unk_token="<unk>")
    )
    words.pre_tokenizer = Whitespace()
    if writes_bos:
        single = "<s> $A </s>" if ends else "<s> $A"
        words.post_processor = TemplateProcessing(single=single, special_tokens=[("<s>", BOS), ("</s>", EOS)])
    return PreTrainedTokenizerFast(tokenizer_object=words, **({"bos_token": "<s>", "eos_token": "</s>"} | special))


class Sure(torch.nn.Module):
    """A head that gives the same logits everywhere."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(*hidden.shape[:-1], -1)


def make_writer(**chances: float) -> PreTrainedModel:
    """A model that writes each word with a chance of its own, whatever it has written before."""
    model = make_model()
    logits = torch.full((96,), -torch.inf)
    for word, chance in chances.items():
        logits[EOS if word == "end" else int(word[1:])] = torch.tensor(chance).log()
    model.lm_head = Sure(logits)
    model.generation_config.eos_token_id = EOS
    return model


def write(model: PreTrainedModel, tokenizer: Any = None, **options: Any) -> Dataset:
    options = {"chunks": 4, "sequence_length": 16, "progress": False} | options
    return write_calibration_text(model, make_tokenizer() if tokenizer is None else tokenizer, **options)


def test_texts_fill_the_chunks_that_calibration_makes_of_them() -> None:
    model = make_model()
    dataset = write(model)
    assert dataset.column_names == ["language", "text"]
    assert {*dataset["language"]} == {"self"}
    assert all(text.strip() for text in dataset["text"])
    config = MWandaConfig(sequence_length=16, samples_per_language=4)
    (coverage,) = build_chunks(dataset, config, model, make_tokenizer()).coverage
    assert (coverage.chunks, coverage.empty) == (4, 0)


def test_every_token_is_drawn_as_often_as_the_model_holds_it_possible() -> None:
    model = make_writer(w5=0.6, w6=0.3, w7=0.1)
    # Not even one of these has an effect.
    model.generation_config.update(
        do_sample=True, top_k=1, temperature=0.01, repetition_penalty=9.0, bad_words_ids=[[5]]
    )
    counts = Counter(" ".join(write(model, chunks=200)["text"]).split())
    shares = {word: count / counts.total() for word, count in counts.items()}
    assert shares == pytest.approx({"w5": 0.6, "w6": 0.3, "w7": 0.1}, abs=0.03)


def test_temperature_evens_chances_out_or_sharpens_them() -> None:
    model = make_writer(w5=0.8, w6=0.2)
    share = {}
    for temperature in (0.5, 2.0):
        counts = Counter(" ".join(write(model, **MANY, temperature=temperature)["text"]).split())
        share[temperature] = counts["w5"] / counts.total()
    assert share == pytest.approx({0.5: 16 / 17, 2.0: 2 / 3}, abs=0.03)


def test_text_ends_where_the_model_ends_it_and_another_one_follows() -> None:
    model = make_writer(w5=0.8, end=0.2)
    dataset = write(model, chunks=20)
    lengths = [len(text.split()) for text in dataset["text"]]
    assert len({*lengths}) > 5
    assert min(lengths) >= 1  # texts that end at once are left out
    assert max(lengths) <= 15
    assert sum(lengths) + len(lengths) >= 20 * 16  # each begins with a token
    assert "</s>" not in " ".join(dataset["text"])
    found = build_chunks(dataset, MWandaConfig(sequence_length=16, samples_per_language=99), model, make_tokenizer())
    assert found.coverage[0].chunks >= 20


def test_seed_and_batch_size_decide_the_text() -> None:
    model = make_model()
    first = write(model, seed=1)["text"]
    assert write(model, seed=1)["text"] == first
    assert write(model, seed=2)["text"] != first
    assert len({*write(model, batch_size=1)["text"]}) > 1


def test_nothing_of_the_caller_changes() -> None:
    model = make_model().train()
    model.generation_config.update(top_k=7, max_length=5)
    before, config, values = state_of(model), model.generation_config, copy.deepcopy(model.generation_config)
    state = torch.get_rng_state()
    write(model)
    assert_untouched(model, before)
    assert model.generation_config is config
    assert config == values
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_of_the_caller_changes_if_writing_is_stopped(error: type[BaseException]) -> None:
    model = make_model()
    before, config, calls = state_of(model), model.generation_config, []

    def stop(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 5:
            raise error

    handle = model.lm_head.register_forward_hook(stop)
    with pytest.raises(error):
        write(model)
    handle.remove()
    assert_untouched(model, before)
    assert model.generation_config is config


@pytest.mark.parametrize(
    ("tokenizer", "first"),
    [
        (make_tokenizer(), BOS),
        (make_tokenizer(writes_bos=False), BOS),
        (make_tokenizer(writes_bos=False, bos_token=None), EOS),  # type: ignore[arg-type]
        (make_tokenizer(bos_token=None), BOS),  # type: ignore[arg-type]
    ],
    ids=["writes it", "has one", "ends texts only", "writes what it does not name"],
)
def test_model_begins_as_the_tokenizer_begins_a_text(tokenizer: PreTrainedTokenizerBase, first: int) -> None:
    model, read = make_model(), []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    write(model, tokenizer, batch_size=2)
    assert read[0].tolist() == [[first], [first]]


def test_model_goes_on_with_what_it_is_given_in_each_language() -> None:
    model, read = make_writer(w5=0.5, w6=0.5), []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    dataset = write(model, beginnings={"sw": ["w7 w8"], "id": ["w9"]}, batch_size=2)
    assert {*dataset["language"]} == {"self-id", "self-sw"}
    assert [ids.tolist() for ids in read if ids.shape[1] > 1] == [
        *[[[BOS, 9]] * 2] * 2,
        *[[[BOS, 7, 8]] * 2] * 2,
    ]
    for language, beginning in {"self-id": ["w9"], "self-sw": ["w7", "w8"]}.items():
        texts = [row["text"].split() for row in dataset if row["language"] == language]
        assert len(texts) == 4  # chunks of 16 tokens with that before each text
        assert all(text[: len(beginning)] == beginning and len(text) == 15 for text in texts)
        assert {word for text in texts for word in text[len(beginning) :]} == {"w5", "w6"}


def test_beginnings_are_rows_or_texts_and_those_of_a_language_take_turns() -> None:
    rows = [{"language": "sw", "text": text} for text in ("w7", " ", "w8")]
    dataset = write(make_model(), beginnings=rows, batch_size=1)
    assert [text.split()[0] for text in dataset["text"]][:4] == ["w7", "w8", "w7", "w8"]
    assert write(make_model(), beginnings={"sw": ["w7", "w8"]}, batch_size=1)["text"] == dataset["text"]


def test_model_keeps_closer_to_what_it_expects_after_a_beginning() -> None:
    model = make_writer(w5=0.8, w6=0.2)
    texts = write(model, **MANY, beginnings={"sw": ["w7"]})["text"]
    assert texts == write(model, **MANY, beginnings={"sw": ["w7"]}, temperature=0.8)["text"]
    counts = Counter(" ".join(texts).split())
    assert counts["w5"] / (counts["w5"] + counts["w6"]) == pytest.approx(4**1.25 / (4**1.25 + 1), abs=0.02)


def test_language_is_written_as_it_is_without_the_others() -> None:
    alone = write(make_model(), beginnings={"sw": ["w7"]})
    both = write(make_model(), beginnings={"id": ["w9"], "sw": ["w7"]})
    assert [row["text"] for row in both if row["language"] == "self-sw"] == list(alone["text"])


def test_no_more_texts_are_written_at_a_time_than_seem_to_be_missing() -> None:
    model, sizes = make_writer(w5=0.8, end=0.2), []
    model.get_input_embeddings().register_forward_pre_hook(
        lambda _, inputs: sizes.append(len(inputs[0])) if (inputs[0] == BOS).all() else None
    )
    dataset = write(model, chunks=20, batch_size=32)
    assert sizes[:2] == [20, 32]  # texts turn out to be shorter than chunks
    assert len(sizes) < 8
    assert len(dataset) < sum(sizes) < 1.5 * len(dataset)  # some are empty


@pytest.mark.parametrize(
    "tokenizer",
    [
        make_tokenizer(),
        make_tokenizer(bos_token=None),  # type: ignore[arg-type]
        make_tokenizer(writes_bos=False),
        make_tokenizer(ends=True),
        make_tokenizer(ends=True, eos_token=None),  # type: ignore[arg-type]
    ],
    ids=["begins", "begins with what it does not name", "does not", "ends", "ends with what it does not name"],
)
def test_beginning_is_what_the_text_says_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    model, read = make_writer(w5=1.0), []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    dataset = write(model, tokenizer, beginnings={"sw": ["w7 w8"]}, batch_size=1)
    assert read[0].tolist() == [[BOS, 7, 8]]
    assert all(text.startswith("w7 w8 w5") for text in dataset["text"])


def test_beginnings_may_be_token_ids_and_languages_labels() -> None:
    expected = list(write(make_model(), beginnings={"sw": ["w7 w8"]})["text"])
    padded = {"input_ids": [0] * 60 + [BOS, 7, 8], "attention_mask": [0] * 60 + [1] * 3}
    for row in ({"input_ids": [BOS, 7, 8]}, {"input_ids": [7, 8]}, padded):
        assert list(write(make_model(), beginnings={"sw": [row]})["text"]) == expected
    rows = Dataset.from_dict({"language": [1], "text": ["w7 w8"]}).cast_column(
        "language", ClassLabel(names=["en", "sw"])
    )
    labelled = write(make_model(), beginnings=rows)
    assert (list(labelled["text"]), {*labelled["language"]}) == (expected, {"self-sw"})


def test_beginning_ends_before_a_word_that_the_tokenizer_does_not_know() -> None:
    tokenizer = make_tokenizer(unk_token="<unk>")
    dataset = write(make_writer(w5=1.0), tokenizer, beginnings={"sw": ["huru w7 watu w8"]})
    assert {*dataset["text"]} == {" ".join(["w7"] + ["w5"] * 14)}


def test_no_more_beginnings_are_read_than_there_are_chunks() -> None:
    def rows() -> Iterator[dict[str, str]]:
        for number in range(7, 11):
            yield {"text": f"w{number}"}
        raise AssertionError

    dataset = write(make_model(), beginnings={"sw": IterableDataset.from_generator(rows)}, batch_size=1)
    assert [text.split()[0] for text in dataset["text"]][:4] == ["w7", "w8", "w9", "w10"]


def test_half_of_a_chunk_is_left_to_the_model() -> None:
    dataset = write(make_writer(w5=1.0), beginnings={"sw": [" ".join(["w7"] * 40)]})
    assert {*dataset["text"]} == {" ".join(["w7"] * 7 + ["w5"] * 8)}  # one token goes before each text


def test_languages_with_beginnings_fill_as_many_chunks_as_calibration_reads() -> None:
    dataset = write(make_writer(w5=1.0), beginnings={"sw": ["w7"]}, chunks=None)
    assert len(dataset) == MWandaConfig.samples_per_language


@pytest.mark.parametrize(
    ("beginnings", "options", "error", "message"),
    [
        ({"sw": ["w7"], "id": ["", " "]}, {}, ValueError, "there is no text for language 'id'"),
        ({"sw": ["</s>"]}, {}, ValueError, "there is no text for language 'sw'"),
        ({}, {}, ValueError, "beginnings is empty"),
        ([], {}, ValueError, "beginnings is empty"),
        ("sw", {}, TypeError, "beginnings is a str: give a dict"),
        (7, {}, TypeError, "beginnings is a int: give a dict"),
        (IterableDataset.from_generator(lambda: iter(())), {}, ValueError, "give a dict of language to stream"),
        ([{"language": "sw", "body": "w7"}], {}, ValueError, "Column 'text' is missing in language 'sw'"),
        ({"sw": "w7"}, {}, TypeError, "give a list of texts"),
        ({"sw": [7]}, {}, TypeError, "texts are strings"),
        ({"sw": ["w7"]}, {"sequence_length": 2}, ValueError, "leaves no room for text: give at least 3"),
    ],
)
def test_beginnings_that_cannot_be_read_are_refused(
    beginnings: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = make_model()
    before = state_of(model)
    with pytest.raises(error, match=message):
        write(model, beginnings=beginnings, **options)
    assert_untouched(model, before)


def test_tokenizer_that_begins_and_ends_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="neither a beginning-of-sequence nor an end-of-sequence token"):
        write(make_model(), make_tokenizer(writes_bos=False, bos_token=None, eos_token=None))  # type: ignore[arg-type]


def test_halves_of_characters_are_replaced() -> None:
    class Broken(PreTrainedTokenizerFast):
        def decode(self, *args: Any, **kwargs: Any) -> str:
            return "\ud800" + str(super().decode(*args, **kwargs))

    tokenizer = Broken(tokenizer_object=make_tokenizer().backend_tokenizer, bos_token="<s>", eos_token="</s>")
    texts = list(write(make_model(), tokenizer)["text"])
    assert all(text.startswith("\ufffd") for text in texts)
    json.dumps(texts, ensure_ascii=False).encode()


def test_model_that_writes_nothing_is_refused_instead_of_waited_for() -> None:
    with pytest.raises(ValueError, match="LlamaForCausalLM writes no text: 32 times in a row"):
        write(make_writer(end=1.0), batch_size=2)


def test_nan_is_an_error_of_the_model() -> None:
    model = make_model()
    model.lm_head.weight.data[7, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="The model gives NaN or infinity"):
        write(model)


def test_models_that_write_nothing_from_nothing_are_refused_by_name() -> None:
    models: dict[str, PreTrainedModel] = {
        "T5ForConditionalGeneration is an encoder-decoder": T5ForConditionalGeneration(
            T5Config(vocab_size=96, d_model=16, d_ff=16, d_kv=8, num_heads=2, num_layers=1)
        ),
        "BertForMaskedLM is an encoder": BertForMaskedLM(
            BertConfig(vocab_size=96, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
        ),
        "LlamaForSequenceClassification has no language-model head": LlamaForSequenceClassification(
            LlamaConfig(**SIZES)
        ),
    }
    for message, model in models.items():
        with pytest.raises(ValueError, match=f"{message}.* Only a causal language model writes"):
            write(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunks": 0}, "chunks=0 is not allowed: give a whole number of at least 1"),
        ({"batch_size": 1.5}, "batch_size=1.5 is not allowed"),
        ({"temperature": 0}, "temperature=0 is not allowed: give a number above 0"),
        ({"seed": -1}, "seed=-1 is not allowed"),
        ({"sequence_length": 0}, "sequence_length=0 is not allowed"),
        ({"sequence_length": 65}, "exceeds the model's 64 positions"),
        ({"sequence_length": 1}, "leaves no room for text: give at least 2"),
        ({"language": ""}, "give a name for the language"),
        ({"text_column": "language"}, "give a name for the language, and one for each column"),
    ],
)
def test_arguments_that_are_not_allowed_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write(make_model(), **options)


def test_text_joins_any_other_and_has_a_weight_of_its_own(
    sample_model: PreTrainedModel,
    sample_tokenizer: PreTrainedTokenizerBase,
    sample_rows: dict[str, list[dict[str, str]]],
) -> None:
    own = write(sample_model, sample_tokenizer, chunks=2, sequence_length=32)
    rows = Dataset.from_list([row for row in sample_rows["calibration"] if row["language"] in ("en", "hi")])
    dataset = concatenate_datasets([rows.select_columns(own.column_names), own])
    config = MWandaConfig(sequence_length=32, samples_per_language=2, language_weights={"self": 8.0})
    pruned = MWandaPruner(config, progress=False).prune(sample_model, dataset, sample_tokenizer)
    languages = pruned.config.mwanda_config["languages"]
    assert {name: round(entry["weight"], 3) for name, entry in languages.items()} == {"en": 0.1, "hi": 0.1, "self": 0.8}
