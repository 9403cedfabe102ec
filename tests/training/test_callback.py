"""Masks survive training with a `Trainer`, and what is saved and logged says so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from optimum_mwanda import MWandaCallback, RigLCallback, read_masks, sparsity_record, verify_sparsity

from ..conftest import has_hooks, make_model, state_of
from .conftest import prune_sample

MakeTrainer = Callable[..., Trainer]


class Watcher(TrainerCallback):
    """Looks at gradients and moments before every step: none of a pruned weight may differ from zero."""

    def __init__(self, model: PreTrainedModel) -> None:
        masks = read_masks(model)
        self.pruned = {model.get_parameter(f"{name}.weight"): mask for name, mask in masks.items()}
        self.steps = 0

    def on_pre_optimizer_step(self, *_: Any, **kwargs: Any) -> None:
        self.steps += 1
        state = getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"]).state
        for parameter, pruned in self.pruned.items():
            assert parameter.grad is not None
            assert not parameter.grad[pruned].any()
            for moment in ("exp_avg", "exp_avg_sq"):
                assert moment not in state[parameter] or not state[parameter][moment][pruned].any()


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, id="plain"),
        pytest.param({"gradient_accumulation_steps": 3, "max_grad_norm": 0.1}, id="accumulation and clipping"),
        pytest.param({"bf16": True}, id="bf16"),
        pytest.param({"weight_decay": 0.1, "optim": "adamw_torch_fused"}, id="fused AdamW with weight decay"),
        pytest.param({"optim": "adafactor"}, id="Adafactor"),
        # All but the C++ compiler, which takes half a minute and is told nothing of masks.
        pytest.param({"torch_compile": True, "torch_compile_backend": "aot_eager", "max_steps": 3}, id="torch.compile"),
    ],
)
def test_pruned_weights_gradients_and_moments_stay_zero(
    arguments: dict[str, Any], pruned: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    before = state_of(pruned)
    trainer = make_trainer(pruned, MWandaCallback(), **arguments)
    watcher = Watcher(pruned)
    trainer.add_callback(watcher)
    trainer.train()
    assert watcher.steps == trainer.state.global_step > 0
    assert verify_sparsity(pruned).ok
    name = "model.layers.0.mlp.up_proj.weight"
    kept = before[name] != 0
    assert (pruned.get_parameter(name)[kept] != before[name][kept]).float().mean() > 0.9


def test_masks_are_kept_with_gradient_checkpointing(pruned: PreTrainedModel, make_trainer: MakeTrainer) -> None:
    enable = getattr(pruned, "activation_checkpointing_enable", None) or pruned.gradient_checkpointing_enable
    enable()
    trainer = make_trainer(pruned, MWandaCallback())
    trainer.add_callback(Watcher(pruned))
    trainer.train()
    assert verify_sparsity(pruned).ok


def test_without_the_callback_the_zeros_are_lost(pruned: PreTrainedModel, make_trainer: MakeTrainer) -> None:
    make_trainer(pruned, TrainerCallback()).train()
    assert verify_sparsity(pruned).lost


def test_clipping_sees_the_gradient_of_what_is_trained(pruned: PreTrainedModel, make_trainer: MakeTrainer) -> None:
    """Clipped by their own norm, the gradients of the kept weights must have exactly that norm."""
    norms = []

    class Norm(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **kwargs: Any) -> None:
            gradients = [p.grad.norm() for p in kwargs["model"].parameters() if p.grad is not None]
            norms.append(torch.stack(gradients).norm())

    trainer = make_trainer(pruned, MWandaCallback(), max_grad_norm=1e-3)
    trainer.add_callback(Norm())
    trainer.train()
    torch.testing.assert_close(torch.stack(norms), torch.full((6,), 1e-3), rtol=1e-3, atol=0)


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    arguments = {"save_strategy": "steps", "save_steps": 3, "logging_steps": 1}
    whole = make_trainer(prune_sample(), MWandaCallback(), output_dir=tmp_path / "whole", **arguments)
    whole.train()

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step == 3

    first = make_trainer(prune_sample(), MWandaCallback(), output_dir=tmp_path / "parts", **arguments)
    first.add_callback(Stop())
    first.train()
    checkpoint = get_last_checkpoint(tmp_path / "parts")
    assert checkpoint is not None
    resumed = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    second = make_trainer(resumed, MWandaCallback(), output_dir=tmp_path / "parts", **arguments)
    second.train(resume_from_checkpoint=checkpoint)
    expected, found = state_of(whole.model), state_of(second.model)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in (whole, second)]
    assert losses[0] == losses[1]
    for model in (whole.model, second.model):
        record = sparsity_record(model)
        assert record is not None
        assert [(entry.recipe, entry.steps) for entry in record.training] == [("masks kept", 6)]


def test_every_checkpoint_is_what_its_record_says(
    tmp_path: Path, pruned: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    make_trainer(
        pruned,
        MWandaCallback(),
        save_strategy="steps",
        eval_strategy="steps",
        save_steps=1,
        eval_steps=1,
        save_total_limit=2,
        save_only_model=True,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        # The loss can only get worse, so the best model is the first one.
        learning_rate=3.0,
    ).train()
    checkpoints = {int(folder.name.split("-")[1]): folder for folder in (tmp_path / "out").glob("checkpoint-*")}
    assert len(checkpoints) == 2
    for steps, folder in checkpoints.items():
        assert verify_sparsity(folder).ok
        record = sparsity_record(folder)
        assert record is not None
        assert [entry.steps for entry in record.training] == [steps]
    record = sparsity_record(pruned)
    assert record is not None
    assert [entry.steps for entry in record.training] == [1]
    assert verify_sparsity(pruned).ok


def test_the_sparsity_reaches_the_log_and_every_tracker(pruned: PreTrainedModel, make_trainer: MakeTrainer) -> None:
    seen: list[dict[str, float]] = []

    class Tracker(TrainerCallback):
        """Gets the log before callbacks of the user do, as the trackers in `report_to` do."""

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            seen.append(dict(logs))

    trainer = make_trainer(pruned, MWandaCallback(), eval_strategy="epoch")
    trainer.callback_handler.callbacks.insert(0, Tracker())
    trainer.train()
    record = sparsity_record(pruned)
    assert record is not None
    about_training = [logs for logs in seen if "loss" in logs or "train_loss" in logs]
    assert len(about_training) == 4
    assert all(logs["sparsity"] == pytest.approx(record.achieved_sparsity) for logs in about_training)
    assert not any("sparsity" in logs for logs in seen if "eval_loss" in logs)
    history = [entry for entry in trainer.state.log_history if "loss" in entry or "train_loss" in entry]
    assert all(entry["sparsity"] == pytest.approx(record.achieved_sparsity) for entry in history)


def test_a_given_map_is_kept_in_a_model_without_a_record(make_trainer: MakeTrainer, sample_model: Any) -> None:
    name = "model.layers.0.mlp.up_proj"
    pruned = torch.zeros_like(sample_model.get_parameter(f"{name}.weight"), dtype=torch.bool)
    pruned[:, ::2] = True
    make_trainer(sample_model, MWandaCallback({name: pruned})).train()
    weight = sample_model.get_parameter(f"{name}.weight")
    assert not weight[pruned].any()
    assert weight[~pruned].all()


def test_a_dense_model_is_refused_before_the_first_step(sample_model: Any, make_trainer: MakeTrainer) -> None:
    before = state_of(sample_model)
    trainer = make_trainer(sample_model, MWandaCallback())
    with pytest.raises(ValueError, match="has no sparsity record"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in sample_model.state_dict().items())


def test_masks_of_another_model_are_refused(pruned: PreTrainedModel, make_trainer: MakeTrainer) -> None:
    masks = {name: torch.zeros(1, 1, dtype=torch.bool) for name in read_masks(pruned)}
    with pytest.raises(ValueError, match=r"mask of .* is torch.bool of shape \(1, 1\)"):
        make_trainer(pruned, MWandaCallback(masks)).train()
    with pytest.raises(ValueError, match="masks names 'transformer'"):
        make_trainer(pruned, MWandaCallback({"transformer": torch.zeros(2, 2, dtype=torch.bool)})).train()


def test_what_is_no_report_is_refused_before_the_training() -> None:
    with pytest.raises(TypeError, match="report is a dict: give PerplexityComparison"):
        MWandaCallback(report={"en": 1.0})  # type: ignore[arg-type]


def test_weights_that_the_record_does_not_describe_are_refused(
    pruned: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    with torch.no_grad():
        pruned.get_parameter("model.layers.0.mlp.up_proj.weight").fill_(1)
    with pytest.raises(ValueError, match=r"not those that the sparsity record describes.*"):
        make_trainer(pruned, MWandaCallback()).train()


def test_training_again_adds_to_the_record(pruned: PreTrainedModel, make_trainer: MakeTrainer) -> None:
    for _ in range(2):
        make_trainer(pruned, MWandaCallback(), max_steps=2).train()
    record = sparsity_record(pruned)
    assert record is not None
    assert [entry.steps for entry in record.training] == [2, 2]
    assert "Trained afterwards for 2 steps (masks kept)." in str(record)


def test_a_training_without_a_step_is_not_in_the_record(pruned: PreTrainedModel, make_trainer: MakeTrainer) -> None:
    class FailAtOnce(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("mine")

    trainer = make_trainer(pruned, MWandaCallback())
    trainer.add_callback(FailAtOnce())
    with pytest.raises(RuntimeError, match="mine"):
        trainer.train()
    make_trainer(pruned, MWandaCallback(), max_steps=2).train()
    record = sparsity_record(pruned)
    assert record is not None
    assert [entry.steps for entry in record.training] == [2]


@pytest.mark.parametrize("other", [MWandaCallback, RigLCallback])
def test_two_callbacks_that_keep_masks_are_refused(
    other: type[MWandaCallback], pruned: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    before = pruned.config.mwanda_config
    trainer = make_trainer(pruned, MWandaCallback())
    trainer.add_callback(other())
    with pytest.raises(ValueError, match=f"has both MWandaCallback and {other.__name__}"):
        trainer.train()
    assert pruned.config.mwanda_config == before
    assert not has_hooks(pruned)


def test_nothing_is_left_behind(pruned: PreTrainedModel, make_trainer: MakeTrainer) -> None:
    callback = MWandaCallback()
    trainer = make_trainer(pruned, callback)
    trainer.train()
    assert not has_hooks(pruned)
    optimizer = trainer.optimizer.optimizer
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_a_random_model_of_another_family_keeps_its_transposed_matrices(make_trainer: MakeTrainer) -> None:
    from optimum_mwanda import MWandaConfig, MWandaPruner

    model = make_model("gpt2")
    config = MWandaConfig(sparsity=0.5, criterion="magnitude", allocation="uniform")
    MWandaPruner(config, progress=False).prune(model)
    rows = [{"input_ids": list(range(start, start + 8)), "labels": list(range(start, start + 8))} for start in range(8)]
    trainer = make_trainer(model, MWandaCallback())
    trainer.train_dataset = rows
    trainer.train()
    assert verify_sparsity(model).ok
