"""Masks survive training with TRL."""

import itertools
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from optimum_mwanda import MWandaCallback, sparsity_record, verify_sparsity

pytest.importorskip("trl", reason="TRL is not installed")

ARGUMENTS = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "report_to": [],
    "disable_tqdm": True,
    "save_strategy": "steps",
    "save_steps": 2,
    "logging_steps": 1,
    "use_cpu": True,
    "bf16": False,
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of TRL itself
def test_supervised_fine_tuning(
    tmp_path: Path,
    pruned: PreTrainedModel,
    sample_tokenizer: PreTrainedTokenizerBase,
    sample_rows: dict[str, list[dict[str, str]]],
) -> None:
    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        pruned,
        SFTConfig(tmp_path, max_length=24, **ARGUMENTS),
        train_dataset=Dataset.from_list([{"text": row["text"]} for row in sample_rows["calibration"][:8]]),
        processing_class=sample_tokenizer,
        callbacks=[MWandaCallback()],
    )
    trainer.train()
    check(pruned, tmp_path, trainer.state.log_history)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of TRL itself
def test_direct_preference_optimization(
    tmp_path: Path,
    pruned: PreTrainedModel,
    sample_tokenizer: PreTrainedTokenizerBase,
    sample_rows: dict[str, list[dict[str, str]]],
) -> None:
    from trl import DPOConfig, DPOTrainer

    texts = [row["text"] for row in sample_rows["calibration"][:9]]
    pairs = [
        {"prompt": text[:20], "chosen": text[20:60], "rejected": other[20:60]}
        for text, other in itertools.pairwise(texts)
    ]
    trainer = DPOTrainer(
        pruned,
        args=DPOConfig(tmp_path, max_length=32, **ARGUMENTS),
        train_dataset=Dataset.from_list(pairs),
        processing_class=sample_tokenizer,
        callbacks=[MWandaCallback()],
    )
    trainer.train()
    check(pruned, tmp_path, trainer.state.log_history)


def check(model: PreTrainedModel, folder: Path, log: list[dict[str, float]]) -> None:
    """Model, checkpoint, log and card say the same."""
    record = sparsity_record(model)
    assert record is not None
    assert verify_sparsity(model).ok
    assert verify_sparsity(folder / "checkpoint-2").ok
    assert [entry.steps for entry in record.training] == [2]
    assert all(entry["sparsity"] == pytest.approx(record.achieved_sparsity) for entry in log if "loss" in entry)
