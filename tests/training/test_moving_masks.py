"""RigL with a `Trainer`: masks move, and what is saved and recorded stays true."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainerCallback

from optimum_mwanda import MWandaConfig, MWandaPruner, RigLCallback, read_masks, sparsity_record, verify_sparsity
from optimum_mwanda.training.rigl import redraw_mask, update_fraction

from ..conftest import has_hooks, make_model, state_of
from ..families.matrix import FAMILIES
from .test_callback import Watcher
from .tiny import Fail, prune_tiny, stop_and_resume

MakeTrainer = Callable[..., Trainer]
NAME = "model.layers.0.mlp.up_proj"


class Look(TrainerCallback):
    """Notes the zeros of a matrix, and its moments, after every step."""

    def __init__(self, name: str = NAME) -> None:
        self.name = name
        self.masks: list[Tensor] = []
        self.moments: list[Tensor] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        parameter = kwargs["model"].get_parameter(f"{self.name}.weight")
        self.masks.append(parameter.detach() == 0)
        self.moments.append(kwargs["optimizer"].optimizer.state[parameter]["exp_avg"].clone())


def zeros_per_row(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: mask.sum(-1) for name, mask in read_masks(model).items()}


def test_masks_move_every_interval_until_they_stop(tiny: PreTrainedModel, train_tiny: MakeTrainer) -> None:
    before = zeros_per_row(tiny)
    trainer = train_tiny(tiny, RigLCallback(alpha=0.3, interval=2, stop=0.8))
    look = Look()
    trainer.add_callback(look)
    trainer.train()
    moved = [not torch.equal(a, b) for a, b in zip(look.masks, look.masks[1:], strict=False)]
    assert moved == [True, False, True, False, False]  # after the steps 2 and 4, of 6, but not after the last
    after = zeros_per_row(tiny)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert verify_sparsity(tiny).ok
    record = sparsity_record(tiny)
    assert record is not None
    assert [(entry.recipe, entry.steps) for entry in record.training] == [("rigl", 6)]


def test_what_comes_and_goes_starts_at_zero(tiny: PreTrainedModel, train_tiny: MakeTrainer) -> None:
    trainer = train_tiny(tiny, RigLCallback(alpha=0.3, interval=3, stop=0.9), max_steps=4)
    look = Look()
    before = read_masks(tiny)[NAME]
    trainer.add_callback(look)
    trainer.train()
    gone, back = look.masks[2] & ~before, before & ~look.masks[2]
    assert gone.sum() == back.sum() > 10
    assert not look.moments[2][gone | back].any()
    assert look.moments[2][~before & ~gone].all()
    assert look.moments[3][back].any()  # what came back is trained
    assert not look.moments[3][gone].any()
    assert tiny.get_parameter(f"{NAME}.weight").detach()[back].abs().max() > 1e-3


def test_the_masks_are_those_of_the_dense_gradient_of_the_step(tiny: PreTrainedModel, train_tiny: MakeTrainer) -> None:
    """By hand: two micro-batches, whose gradients add up."""
    trainer = train_tiny(
        tiny, RigLCallback(alpha=0.2, interval=1, stop=0.5), max_steps=4, gradient_accumulation_steps=2
    )
    gradients: list[Tensor] = []
    parameter = tiny.get_parameter(f"{NAME}.weight")
    before = parameter.detach() == 0
    parameter.register_hook(lambda gradient: gradients.append(gradient.clone()))  # before that of the callback
    look = Look()
    seen: list[Tensor] = []

    class Weights(TrainerCallback):
        def on_optimizer_step(self, *_: Any, **__: Any) -> None:
            seen.append(parameter.detach().clone())

    trainer.add_callback(Weights())
    trainer.add_callback(look)
    trainer.train()
    fraction = update_fraction(1, 2, 0.2)
    expected = redraw_mask(seen[0], gradients[0] + gradients[1], before, fraction, run=before.shape[1])
    assert torch.equal(look.masks[0], expected)
    assert not torch.equal(look.masks[0], before)


def test_only_weights_that_others_can_replace_go_by_default(
    tiny: PreTrainedModel, train_tiny: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = train_tiny(tiny, RigLCallback(interval=3), learning_rate=3e-3, lr_scheduler_type="constant")
    parameter = tiny.get_parameter(f"{NAME}.weight")
    weights, look = [], Look()

    class Weights(TrainerCallback):
        def on_optimizer_step(self, *_: Any, **__: Any) -> None:
            weights.append(parameter.detach().clone())

    trainer.add_callback(Weights())
    trainer.add_callback(look)
    trainer.train()
    kept, gone = ~look.masks[1], look.masks[2] & ~look.masks[1]
    reach = 3 * 3e-3
    assert gone.sum() == (weights[2][kept].abs() <= reach).sum() < int(update_fraction(3, 5) * kept.sum())
    assert 0 < weights[2][gone].abs().max() <= reach
    assert verify_sparsity(tiny).ok
    assert not caplog.records


def test_masks_that_nothing_could_replace_stay_and_a_warning_says_so(
    tiny: PreTrainedModel, train_tiny: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    before = read_masks(tiny)
    train_tiny(tiny, RigLCallback(interval=1), learning_rate=1e-4).train()
    assert all(torch.equal(mask, before[name]) for name, mask in read_masks(tiny).items())
    (record,) = caplog.records
    assert "No mask has moved" in record.getMessage()


def test_exchanging_weights_that_nothing_can_replace_is_warned_of_once(
    tiny: PreTrainedModel, train_tiny: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    before = read_masks(tiny)
    train_tiny(tiny, RigLCallback(alpha=0.3, interval=1), learning_rate=1e-4).train()
    assert not torch.equal(read_masks(tiny)[NAME], before[NAME])
    (record,) = caplog.records
    assert re.search(r"larger than \d\.\de-0\d, .* in the 1 steps", record.getMessage())


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"gradient_accumulation_steps": 2, "max_grad_norm": 0.1}, id="accumulation and clipping"),
        pytest.param({"bf16": True}, id="bf16"),
        pytest.param({"weight_decay": 0.1, "optim": "adamw_torch_fused"}, id="fused AdamW with weight decay"),
        pytest.param({"optim": "adafactor"}, id="Adafactor"),
        pytest.param({"warmup_steps": 3}, id="a first step without learning"),
    ],
)
def test_counts_stay_whatever_the_arguments(
    arguments: dict[str, Any], tiny: PreTrainedModel, train_tiny: MakeTrainer
) -> None:
    before = read_masks(tiny)
    train_tiny(tiny, RigLCallback(alpha=0.3, interval=1), **arguments).train()
    assert verify_sparsity(tiny).ok
    assert not torch.equal(read_masks(tiny)[NAME], before[NAME])


def test_only_kept_weights_have_gradients_and_moments(tiny: PreTrainedModel, train_tiny: MakeTrainer) -> None:
    class Moving(Watcher):
        def on_step_end(self, *_: Any, **kwargs: Any) -> None:
            for parameter in self.pruned:
                self.pruned[parameter] = parameter.detach() == 0

    trainer = train_tiny(tiny, RigLCallback(alpha=0.3, interval=1))
    watcher = Moving(tiny)
    trainer.add_callback(watcher)
    trainer.train()
    assert watcher.steps == 6


@pytest.mark.parametrize("fresh", [False, True], ids=["the checkpoint's model", "the model of the start"])
def test_a_resumed_training_equals_an_uninterrupted_one(fresh: bool, tmp_path: Path, train_tiny: MakeTrainer) -> None:
    def make(model: PreTrainedModel, folder: str = "parts") -> Trainer:
        return train_tiny(model, RigLCallback(alpha=0.3, interval=1), output_dir=tmp_path / folder, logging_steps=1)

    def start(checkpoint: Path | None) -> PreTrainedModel:
        return prune_tiny() if fresh or checkpoint is None else AutoModelForCausalLM.from_pretrained(checkpoint)

    whole = make(prune_tiny(), "whole")
    whole.train()
    second = stop_and_resume(make, 3, start, tmp_path / "parts")
    assert verify_sparsity(tmp_path / "parts" / "checkpoint-3").ok
    expected, found = state_of(whole.model), state_of(second.model)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in (whole, second)]
    assert losses[0] == losses[1]
    assert verify_sparsity(second.model).ok


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        pytest.param("llama", {"pattern": "2:4"}, id="2:4"),
        pytest.param("gpt2", {"sparsity": 0.5}, id="transposed, per row"),
        pytest.param("gpt2", {"pattern": "2:4"}, id="transposed, 2:4"),
        pytest.param("llama", {"sparsity": 0.5, "group": "matrix", "exclude": ["*.q_proj"]}, id="per matrix"),
    ],
)
def test_rows_and_patterns_keep_their_zeros(family: str, settings: dict[str, Any], train_tiny: MakeTrainer) -> None:
    model = prune_tiny(family, **settings)
    before = read_masks(model)
    train_tiny(model, RigLCallback(alpha=0.3, interval=1)).train()
    assert verify_sparsity(model).ok
    for name, mask in read_masks(model).items():
        old, new = (each.T if family == "gpt2" else each for each in (before[name], mask))
        assert not torch.equal(old, new), name
        if "pattern" in settings:
            assert (new.reshape(-1, 4).sum(1) == 2).all()
        elif "group" not in settings:
            assert torch.equal(old.sum(1), new.sum(1))
        else:
            assert not torch.equal(old.sum(1), new.sum(1))


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_every_fused_expert_keeps_its_zeros(family: str, train_tiny: MakeTrainer) -> None:
    model = FAMILIES[family].make()
    MWandaPruner(MWandaConfig(criterion="magnitude", allocation="uniform"), progress=False).prune(model)
    name = next(name for name in read_masks(model) if name.endswith("experts.down_proj"))
    before = read_masks(model)[name]
    train_tiny(model, RigLCallback(alpha=0.3, interval=1)).train()
    after = read_masks(model)[name]
    inputs = 1 if family == "gpt_oss" else 2
    assert torch.equal(before.sum(inputs), after.sum(inputs))
    assert not torch.equal(before, after)
    assert verify_sparsity(model).ok


def test_more_zeros_than_recorded_are_kept_and_counted(tiny: PreTrainedModel, train_tiny: MakeTrainer) -> None:
    with torch.no_grad():
        tiny.get_parameter(f"{NAME}.weight")[0].zero_()
    assert verify_sparsity(tiny).gained
    train_tiny(tiny, RigLCallback(alpha=0.3, interval=1)).train()
    assert verify_sparsity(tiny).ok


def test_given_masks_move_in_a_model_without_a_record(train_tiny: MakeTrainer) -> None:
    model = make_model()
    weight = model.get_parameter(f"{NAME}.weight")
    mask = torch.zeros_like(weight, dtype=torch.bool)
    mask[:, ::2] = True
    train_tiny(model, RigLCallback(alpha=0.3, interval=1, masks={NAME: mask})).train()
    assert (weight == 0).sum() == mask.sum()
    assert not torch.equal(weight == 0, mask)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0}, r"alpha=0 is not allowed: give a share in \(0, 1\]"),
        ({"interval": 0}, "interval=0 is not allowed"),
        ({"stop": 1.5}, r"stop=1\.5 is not allowed"),
    ],
)
def test_settings_that_are_not_allowed_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RigLCallback(**settings)


def test_masks_that_would_never_move_are_refused(tiny: PreTrainedModel, train_tiny: MakeTrainer) -> None:
    before = tiny.config.mwanda_config
    with pytest.raises(ValueError, match=r"every 5 steps, and stay from step 5 on .* would never move"):
        train_tiny(tiny, RigLCallback(alpha=0.3, interval=5)).train()
    assert tiny.config.mwanda_config == before
    assert not has_hooks(tiny)


def test_frozen_matrices_are_refused_if_there_are_no_others(tiny: PreTrainedModel, train_tiny: MakeTrainer) -> None:
    for name in read_masks(tiny):
        tiny.get_parameter(f"{name}.weight").requires_grad_(False)
    with pytest.raises(ValueError, match="None of the pruned matrices is trained"):
        train_tiny(tiny, RigLCallback(alpha=0.3, interval=1)).train()


def test_nothing_is_left_behind(tiny: PreTrainedModel, train_tiny: MakeTrainer) -> None:
    trainer = train_tiny(tiny, RigLCallback(alpha=0.3, interval=1))
    trainer.train()
    assert not has_hooks(tiny)
    assert not trainer.optimizer.optimizer._optimizer_step_post_hooks


def test_close_lets_go_after_an_error(tiny: PreTrainedModel, train_tiny: MakeTrainer) -> None:
    callback = RigLCallback(alpha=0.3, interval=1)
    trainer = train_tiny(tiny, callback)
    trainer.add_callback(Fail())
    with pytest.raises(RuntimeError, match="mine"):
        trainer.train()
    callback.close()
    assert not has_hooks(tiny)
