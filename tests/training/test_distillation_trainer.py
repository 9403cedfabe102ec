"""Distillation in a real Trainer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, TrainingArguments

from optimum_mwanda import DistillationTrainer, distillation_loss, mix_languages, need_weights

from ..conftest import SIZES, make_model, make_rows, state_of
from .test_language_mix import NEED

ROWS = [{**row, "labels": [-100, *row["input_ids"][1:]]} for row in make_rows("en fr sw", 4, 16)]
"""The first label is never predicted, and old versions of transformers count it nevertheless."""


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    defaults: dict[str, Any] = {
        "max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "use_cpu": True, "report_to": [],
        "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1,
    }  # fmt: skip
    return TrainingArguments(str(folder), **defaults | settings)


def trainer(folder: Path, rows: Any = ROWS, teacher: Any = None, settings: Any = None, **others: Any) -> Any:
    dataset = Dataset.from_list(rows) if isinstance(rows, list) else rows
    return DistillationTrainer(
        make_model(seed=1), arguments(folder, **settings or {}), train_dataset=dataset,
        teacher=make_model(seed=2) if teacher is None else teacher, **others,
    )  # fmt: skip


def losses(trained: Any) -> list[float]:
    return [entry["loss"] for entry in trained.state.log_history if "loss" in entry]


def test_a_model_learns_what_its_original_predicts(tmp_path: Path) -> None:
    teacher = make_model(seed=2)
    before = state_of(teacher)
    training = trainer(tmp_path, teacher=teacher, alpha=1.0, settings={"max_steps": 30})
    training.train()
    first, *_, last = losses(training)
    assert last < first / 3
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not teacher.training


def test_the_loss_is_that_of_the_formula(tmp_path: Path) -> None:
    training = trainer(
        tmp_path, alpha=0.3, temperature=2.0, settings={"max_steps": 1, "per_device_train_batch_size": 12}
    )
    ids = torch.tensor([row["input_ids"] for row in ROWS])
    with torch.no_grad():
        logits, dense = (make_model(seed=seed).eval()(ids).logits for seed in (1, 2))
        expected = distillation_loss(logits, dense, ids, alpha=0.3, temperature=2.0)
    training.train()
    assert losses(training) == pytest.approx([expected.item()], rel=1e-5)


def test_accumulated_batches_count_as_one(tmp_path: Path) -> None:
    states = []
    for batch, steps in ((4, 1), (2, 2)):
        settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "learning_rate": 1e-3}
        training = trainer(tmp_path, settings=settings)
        training.train()
        states.append((losses(training), training.model.state_dict()))
    assert states[0][0] == pytest.approx(states[1][0], rel=1e-4)
    for name, tensor in states[0][1].items():
        torch.testing.assert_close(tensor, states[1][1][name], rtol=0, atol=1e-5)


def test_rows_count_by_their_weight(tmp_path: Path) -> None:
    others = [{**row, "loss_weight": 2.0 if row["language"] == "sw" else 0.0} for row in ROWS]
    settings = {"max_steps": 1, "per_device_train_batch_size": 12}
    weighted = trainer(tmp_path, others, settings=settings)
    weighted.train()
    alone = trainer(tmp_path, [row for row in ROWS if row["language"] == "sw"], settings=settings)
    alone.train()
    # All rows are as long: a third of them weigh 2, so the mean is two thirds of theirs.
    assert losses(weighted) == pytest.approx([2 / 3 * loss for loss in losses(alone)], rel=1e-5)


@pytest.mark.parametrize("as_stream", [False, True])
def test_languages_of_a_mix_count_by_their_need(tmp_path: Path, as_stream: bool) -> None:
    rows: Any = [{name: row[name] for name in ("language", "input_ids")} for row in ROWS]
    rows = Dataset.from_list(rows).to_iterable_dataset() if as_stream else rows
    mix = mix_languages(rows, make_model(), languages=["en", "fr", "sw"], sequence_length=16, bos="none")
    weights = need_weights(NEED)
    training = trainer(tmp_path, mix.dataset.map(lambda row: {"loss_weight": weights[row["language"]]}))
    seen = []
    compute = training.compute_loss

    def watched(model: PreTrainedModel, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        seen.extend(inputs["loss_weight"].tolist())
        return compute(model, inputs, *args, **kwargs)

    training.compute_loss = watched
    training.train()
    assert len(seen) == 12
    assert {round(weight, 4) for weight in seen} <= {round(weight, 4) for weight in weights.values()}
    assert len({*seen}) > 1


def test_evaluation_is_that_of_language_modelling(tmp_path: Path) -> None:
    training = trainer(tmp_path, eval_dataset=Dataset.from_list(ROWS))
    ids = torch.tensor([row["input_ids"] for row in ROWS])
    with torch.no_grad():
        expected = make_model(seed=1).eval()(ids, labels=ids).loss.item()
    assert training.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_wrong_teachers_and_settings_are_refused_before_training(tmp_path: Path) -> None:
    model = make_model()
    with pytest.raises(
        ValueError, match="The teacher is the model that is trained: load the dense model a second time"
    ):
        DistillationTrainer(model, arguments(tmp_path), teacher=model)
    other = LlamaForCausalLM(LlamaConfig(**{**SIZES, "vocab_size": 97}))
    with pytest.raises(ValueError, match="The teacher knows 97 tokens, the model 96"):
        trainer(tmp_path, teacher=other)
    with pytest.raises(ValueError, match="alpha=2 is not allowed"):
        trainer(tmp_path, alpha=2)


def test_batches_without_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="The batches have no labels: give rows with 'labels'"):
        trainer(tmp_path, [{"input_ids": row["input_ids"]} for row in ROWS]).train()
