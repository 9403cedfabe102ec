"""Held-out text for the evaluations of a `Trainer`."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from packaging.version import Version
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from optimum_mwanda import MWandaCallback, held_out_chunks, mix_languages

from ..conftest import make_rows


def arguments(folder: Path, **more: Any) -> TrainingArguments:
    settings = {
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
    }
    return TrainingArguments(str(folder), **{**settings, **more})


def test_a_trainer_logs_the_loss_of_every_language(tiny: PreTrainedModel, tmp_path: Path) -> None:
    rows = make_rows("en fr sw", rows=6)
    mix = mix_languages(rows, tiny, sequence_length=16, languages=["en", "sw"])
    chunks = held_out_chunks(rows, tiny, sequence_length=16, tokens_per_language=32)
    trainer = Trainer(
        tiny,
        arguments(tmp_path, eval_strategy="steps", eval_steps=1, save_strategy="no"),
        train_dataset=mix.dataset,
        eval_dataset=chunks,
        callbacks=[MWandaCallback()],
    )
    trainer.train()
    for language in ("en", "fr", "sw"):
        found = [entry for entry in trainer.state.log_history if f"eval_{language}_loss" in entry]
        assert [entry["step"] for entry in found] == [1, 2]
        ids = torch.tensor(chunks[language]["input_ids"])
        with torch.no_grad():
            loss = tiny.eval()(input_ids=ids, labels=ids).loss.item()
        if Version(transformers.__version__) < Version("5.1"):  # its evaluation also divides by the first token
            loss *= 15 / 16
        assert found[1][f"eval_{language}_loss"] == pytest.approx(loss, rel=1e-4)
        assert not any("sparsity" in entry for entry in found)


def test_best_model_is_chosen_by_a_language(tiny: PreTrainedModel, tmp_path: Path) -> None:
    rows = make_rows("en sw", rows=6)
    trainer = Trainer(
        tiny,
        arguments(
            tmp_path,
            eval_strategy="steps",
            eval_steps=1,
            save_steps=1,
            load_best_model_at_end=True,
            metric_for_best_model="eval_sw_loss",
        ),
        train_dataset=mix_languages(rows, tiny, sequence_length=16).dataset,
        eval_dataset=held_out_chunks(rows, tiny, sequence_length=16),
        callbacks=[MWandaCallback()],
    )
    trainer.train()
    losses = [entry["eval_sw_loss"] for entry in trainer.state.log_history if "eval_sw_loss" in entry]
    assert trainer.state.best_metric == min(losses)


@pytest.mark.parametrize("as_stream", [False, True], ids=["table", "stream"])
def test_no_more_is_read_than_is_needed(as_stream: bool, tiny: PreTrainedModel) -> None:
    rows = make_rows("en sw", rows=40)
    dataset = Dataset.from_list(rows)
    whole = held_out_chunks(dataset, tiny, sequence_length=16, tokens_per_language=10**6)
    some = held_out_chunks(
        dataset.to_iterable_dataset() if as_stream else dataset,
        tiny,
        sequence_length=16,
        tokens_per_language=40,
        languages="sw",
    )
    assert list(whole) == ["en", "sw"]
    assert list(some) == ["sw"]
    assert len(some["sw"]) == 2 < len(whole["sw"])
    assert some["sw"]["input_ids"] == whole["sw"]["input_ids"][:2]


def test_a_language_with_little_text_is_evaluated_too(
    sample_model: PreTrainedModel, sample_tokenizer: PreTrainedTokenizerBase
) -> None:
    chunks = held_out_chunks(
        {"en": ["one", "two"]}, sample_model, sample_tokenizer, sequence_length=32, tokens_per_language=1
    )
    assert len(chunks["en"]) == 1
    assert math.prod(torch.tensor(chunks["en"]["input_ids"]).shape) == 32


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ({"en": ["one"], "sw": [""]}, {}, "There is no text in: 'sw'"),
        ({"en": ["one"]}, {"languages": ["xx"]}, "'xx' was asked for"),
        ({"en": ["one"]}, {"tokens_per_language": 0}, "tokens_per_language=0"),
        ({"en": ["one"]}, {"sequence_length": 10**6}, "positions"),
        ([{"text": "one"}], {}, "'language' is missing"),
    ],
)
def test_wrong_input_is_refused(
    rows: Any,
    settings: dict[str, Any],
    message: str,
    sample_model: PreTrainedModel,
    sample_tokenizer: PreTrainedTokenizerBase,
) -> None:
    with pytest.raises(ValueError, match=message):
        held_out_chunks(rows, sample_model, sample_tokenizer, **settings)
