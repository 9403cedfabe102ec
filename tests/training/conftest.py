"""A pruned model and text to train it on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from optimum_mwanda import MWandaConfig, MWandaPruner

from ..conftest import SAMPLE_MODEL
from .tiny import prune_tiny, short_rows

Rows = list[dict[str, list[int]]]


def prune_sample(sparsity: float = 0.6, **settings: Any) -> PreTrainedModel:
    """The sample model, pruned without data."""
    model = AutoModelForCausalLM.from_pretrained(SAMPLE_MODEL, dtype=torch.float32)
    config = MWandaConfig(sparsity=sparsity, criterion="magnitude", allocation="uniform", **settings)
    MWandaPruner(config, progress=False).prune(model)
    return model


@pytest.fixture
def pruned() -> PreTrainedModel:
    return prune_sample()


@pytest.fixture(scope="session")
def training_rows(sample_tokenizer: PreTrainedTokenizerBase, sample_rows: dict[str, list[dict[str, str]]]) -> Rows:
    """Chunks of 24 tokens with labels."""
    rows = []
    for row in sample_rows["calibration"][::4]:
        ids = sample_tokenizer(row["text"])["input_ids"][:24]
        if len(ids) == 24:
            rows.append({"input_ids": ids, "labels": ids})
    return rows


@pytest.fixture
def make_trainer(tmp_path: Path, training_rows: Rows) -> Callable[..., Trainer]:
    """Makes a `Trainer` that takes six steps of two rows."""

    def make(model: PreTrainedModel, callback: Any, trainer: type[Trainer] = Trainer, **arguments: Any) -> Trainer:
        defaults = {
            "output_dir": tmp_path / "out",
            "max_steps": 6,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "report_to": [],
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 2,
            "use_cpu": True,
        }
        return trainer(
            model=model,
            args=TrainingArguments(**{**defaults, **arguments}),
            train_dataset=training_rows,
            eval_dataset=training_rows[:4],
            callbacks=[callback],
        )

    return make


@pytest.fixture
def tiny() -> PreTrainedModel:
    return prune_tiny()


@pytest.fixture
def train_tiny(make_trainer: Callable[..., Trainer]) -> Callable[..., Trainer]:
    """As `make_trainer`, with rows for tiny models."""

    def make(model: PreTrainedModel, callback: Any, **arguments: Any) -> Trainer:
        trainer = make_trainer(model, callback, **arguments)
        trainer.train_dataset = trainer.eval_dataset = short_rows()
        return trainer

    return make
