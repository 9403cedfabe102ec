"""What `test_push.py` runs in a process of its own, with an environment that points at a local Hub; prints JSON."""

import json
import tempfile

import torch
from huggingface_hub import snapshot_download
from transformers import Trainer, TrainingArguments

from optimum_mwanda import MWandaCallback, sparsity_record, verify_sparsity

from ..sharing.hub_client import comparison, pruned_model


def push_trained() -> None:
    """Trains a pruned model with `push_to_hub=True`, evaluates, and pushes as scripts do."""
    ids = torch.arange(3, 19).tolist()
    callback = MWandaCallback()
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            max_steps=2,
            per_device_train_batch_size=1,
            learning_rate=1e-2,
            push_to_hub=True,
            hub_model_id="me/trained",
            hub_strategy="end",
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            use_cpu=True,
        )
        rows = [{"input_ids": ids, "labels": ids}] * 4
        trainer = Trainer(pruned_model(), args, train_dataset=rows, callbacks=[callback])
        trainer.train()
        callback.report = comparison()
        trainer.push_to_hub(language="sw")


def look() -> dict[str, object]:
    """Reads the repository as somebody else would."""
    record = sparsity_record("me/trained")
    assert record is not None
    folder = snapshot_download("me/trained")
    return {
        "training": [[entry.recipe, entry.steps] for entry in record.training],
        "verified": verify_sparsity(folder).ok,
    }


if __name__ == "__main__":
    push_trained()
    print(json.dumps(look()))
