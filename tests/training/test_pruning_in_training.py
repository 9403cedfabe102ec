"""Gradual pruning with a `Trainer`: the sparsity rises, and the record is that of the last pruning."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainerCallback

from optimum_mwanda import GradualPruningCallback, MWandaConfig, sparsity_map, sparsity_record, verify_sparsity
from optimum_mwanda.training.gradual import cubic_sparsity

from ..conftest import has_hooks, make_model, make_rows, state_of
from .tiny import prune_tiny, stop_and_resume

MakeTrainer = Callable[..., Trainer]
MAGNITUDE = MWandaConfig(sparsity=0.6, criterion="magnitude", allocation="uniform")
CALIBRATED = {"languages": ["en", "sw"], "samples_per_language": 2, "sequence_length": 24}


class Look(TrainerCallback):
    """Notes the sparsity after every step, and that no zero is ever lost."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.names = [f"{name}.weight" for name in sparsity_map(model)]
        self.zeros: dict[str, Tensor] = {}
        self.sparsities: list[float] = []

    def on_step_end(self, *_: Any, **kwargs: Any) -> None:
        now = {name: kwargs["model"].get_parameter(name).detach() == 0 for name in self.names}
        assert not any((before & ~now[name]).any() for name, before in self.zeros.items())
        self.zeros = now
        self.sparsities.append(sum(int(z.sum()) for z in now.values()) / sum(z.numel() for z in now.values()))


def trainings(model: Any) -> list[tuple[str, int]]:
    record = sparsity_record(model)
    assert record is not None
    return [(entry.recipe, entry.steps) for entry in record.training]


def test_the_sparsity_of_a_dense_model_rises_along_the_cubic(train_tiny: MakeTrainer) -> None:
    model = make_model()
    trainer = train_tiny(model, GradualPruningCallback(MAGNITUDE, interval=2, stop=0.8))
    look = Look(model)
    trainer.add_callback(look)
    trainer.train()
    expected = [cubic_sparsity(step // 2 * 2 if step < 5 else 5, 0, 5, 0.6) for step in range(1, 7)]
    assert look.sparsities == pytest.approx(expected, abs=0.01)
    assert verify_sparsity(model).ok
    record = sparsity_record(model)
    assert record is not None
    assert record.settings["sparsity"] == record.target_sparsity == 0.6
    assert record.history == ()
    assert trainings(model) == [("gradual", 6)]


def test_a_pruned_model_is_pruned_further(train_tiny: MakeTrainer) -> None:
    model = prune_tiny(sparsity=0.3)
    trainer = train_tiny(model, GradualPruningCallback(MAGNITUDE, interval=2, start=0.2, stop=0.7))
    look = Look(model)
    trainer.add_callback(look)
    trainer.train()
    # From step 1 to step 5; at step 1 there is nothing to prune yet.
    expected = [0.3, 0.3, cubic_sparsity(3, 1, 5, 0.6, 0.3), cubic_sparsity(3, 1, 5, 0.6, 0.3), 0.6, 0.6]
    assert look.sparsities == pytest.approx(expected, abs=0.01)
    assert verify_sparsity(model).ok
    record = sparsity_record(model)
    assert record is not None
    # Of the prunings only the first one and the last one are told.
    assert [entry.settings["sparsity"] for entry in record.history] == [0.3]
    assert [(entry.recipe, entry.steps) for entry in record.history[0].training] == [("masks kept", 2)]
    assert trainings(model) == [("gradual", 6)]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"criterion": "wanda"}, id="wanda, outliers"),
        pytest.param({"criterion": "wanda", "calibration": "sequential", "allocation": "uniform"}, id="sequential"),
        pytest.param({"criterion": "sparsegpt", "allocation": "uniform"}, id="sparsegpt"),
        pytest.param({"criterion": "ria", "group": "matrix", "exclude": ["*.q_proj"]}, id="ria, not all"),
    ],
)
def test_every_pruning_is_calibrated_again(settings: dict[str, Any], train_tiny: MakeTrainer) -> None:
    model = make_model()
    config = MWandaConfig(sparsity=0.5, **CALIBRATED, **settings)
    callback = GradualPruningCallback(config, make_rows(), interval=1, stop=0.4)
    trainer = train_tiny(model, callback, max_steps=5)
    look = Look(model)
    trainer.add_callback(look)
    trainer.train()
    assert look.sparsities[0] > 0.2
    assert verify_sparsity(model).ok
    record = sparsity_record(model)
    assert record is not None
    assert record.achieved_sparsity == pytest.approx(0.5, abs=0.02)
    assert set(record.languages) == {"en", "sw"}
    assert record.history == ()
    assert trainings(model) == [("gradual", 5)]


def test_moments_of_what_is_pruned_are_zero(train_tiny: MakeTrainer) -> None:
    model = make_model()
    trainer = train_tiny(model, GradualPruningCallback(MAGNITUDE, interval=1), gradient_accumulation_steps=2)
    seen = []

    class Moments(TrainerCallback):
        def on_step_end(self, *_: Any, **kwargs: Any) -> None:
            parameter = model.get_parameter("model.layers.0.mlp.up_proj.weight")
            moment = kwargs["optimizer"].optimizer.state[parameter]["exp_avg"]
            assert not moment[parameter == 0].any()
            seen.append(int((parameter == 0).sum()))

    trainer.add_callback(Moments())
    trainer.train()
    assert 0 < seen[0] < seen[1] < seen[2] == seen[5]
    assert not has_hooks(model)


@pytest.mark.parametrize("fresh", [False, True], ids=["the checkpoint's model", "the model of the start"])
@pytest.mark.parametrize(("initial", "step"), [(0.0, 1), (0.0, 3), (0.3, 1), (0.3, 3)])
def test_a_resumed_training_equals_an_uninterrupted_one(
    initial: float, step: int, fresh: bool, tmp_path: Path, train_tiny: MakeTrainer
) -> None:
    """Before the first pruning at step 2, and before the second one at step 4."""

    def make(model: PreTrainedModel, folder: str = "parts") -> Trainer:
        callback = GradualPruningCallback(MAGNITUDE, interval=2, stop=0.6)
        return train_tiny(model, callback, output_dir=tmp_path / folder)

    def start(checkpoint: Path | None = None) -> PreTrainedModel:
        if checkpoint is not None and not fresh:
            return AutoModelForCausalLM.from_pretrained(checkpoint)
        return prune_tiny(sparsity=initial) if initial else make_model()

    whole = make(start(), "whole")
    whole.train()
    second = stop_and_resume(make, step, start, tmp_path / "parts")
    expected, found = state_of(whole.model), state_of(second.model)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    records = [sparsity_record(run.model) for run in (whole, second)]
    assert records[0] is not None
    assert records[1] is not None
    assert trainings(whole.model) == trainings(second.model) == [("gradual", 6)]
    assert records[0].matrices == records[1].matrices
    assert [entry.training for entry in records[0].history] == [entry.training for entry in records[1].history]
    assert len(records[0].history) == len(records[1].history) == bool(initial)


def test_a_training_after_the_last_pruning_is_resumed_from_a_path(tmp_path: Path, train_tiny: MakeTrainer) -> None:
    def make(model: PreTrainedModel) -> Trainer:
        return train_tiny(model, GradualPruningCallback(MAGNITUDE, interval=1, stop=0.3), output_dir=tmp_path)

    resumed = stop_and_resume(make, 3, lambda _: make_model(), tmp_path, Path)
    assert trainings(resumed.model) == [("gradual", 6)]


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        (MWandaConfig(pattern="2:4"), {}, "pattern='2:4' has only one sparsity"),
        (MWandaConfig(), {}, "needs calibration data: give dataset"),
        (MAGNITUDE, {"start": 1.0}, r"start=1\.0 is not allowed"),
        (MAGNITUDE, {"start": 0.5, "stop": 0.5}, "stop must be later than start"),
        (MAGNITUDE, {"interval": 0}, "interval=0 is not allowed"),
    ],
)
def test_settings_that_are_not_allowed_are_refused(
    config: MWandaConfig, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        GradualPruningCallback(config, **arguments)


def test_what_is_no_config_is_refused() -> None:
    with pytest.raises(TypeError, match="config is a float: give an MWandaConfig"):
        GradualPruningCallback(0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({"sparsity": 0.5}, {}, r"has a sparsity of 0\.596, and sparsity=0\.5 is not above it"),
        (
            {"sparsity": 0.7},
            {
                "load_best_model_at_end": True,
                "eval_strategy": "steps",
                "eval_steps": 1,
                "save_strategy": "steps",
                "save_steps": 1,
            },
            "load_best_model_at_end may go back",
        ),
        ({"sparsity": 0.7, "include": ["nothing"]}, {}, "include pattern 'nothing' matches none"),
        ({"sparsity": 0.7, "criterion": "wanda", "languages": ["xx"]}, {}, "xx"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_first_step(
    settings: dict[str, Any],
    arguments: dict[str, Any],
    message: str,
    tiny: PreTrainedModel,
    train_tiny: MakeTrainer,
) -> None:
    before, weights = tiny.config.mwanda_config, state_of(tiny)
    callback = GradualPruningCallback(MAGNITUDE.replace(**settings), make_rows(), interval=1)
    trainer = train_tiny(tiny, callback, **arguments)
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0
    assert tiny.config.mwanda_config == before
    assert all(torch.equal(weights[name], tensor) for name, tensor in tiny.state_dict().items())
    assert not has_hooks(tiny)
