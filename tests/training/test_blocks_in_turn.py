"""LISA with a `Trainer`: a few blocks at a time train, and only these take memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainerCallback

from optimum_mwanda import LISACallback, sparsity_record, verify_sparsity
from optimum_mwanda.modeling.blocks import find_blocks
from optimum_mwanda.training import pruned_entries
from optimum_mwanda.training.lisa import blocks_to_train
from optimum_mwanda.training.pruned_entries import recorded_blocks

from ..conftest import has_hooks, make_model, state_of
from .test_callback import Watcher
from .tiny import Fail, prune_tiny, stop_and_resume

MakeTrainer = Callable[..., Trainer]


class Memory(TrainerCallback):
    """Counts gradients before each step and moments after it, and notes which blocks have moved."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.before = state_of(model)
        self.gradients: list[int] = []
        self.moments: list[int] = []
        self.moved: list[tuple[str, ...]] = []

    def on_pre_optimizer_step(self, *_: Any, **kwargs: Any) -> None:
        self.gradients.append(sum(p.grad.numel() for p in kwargs["model"].parameters() if p.grad is not None))

    def on_step_end(self, *_: Any, **kwargs: Any) -> None:
        model, state = kwargs["model"], kwargs["optimizer"].optimizer.state
        self.moments.append(sum(moments["exp_avg"].numel() for moments in state.values()))
        now = state_of(model)
        moved = {name for name in now if not torch.equal(now[name], self.before[name])}
        self.moved.append(tuple(b for b in find_blocks(model) if any(name.startswith(f"{b}.") for name in moved)))
        assert {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"} <= moved
        self.before = now


def sizes(model: PreTrainedModel) -> tuple[dict[str, int], int]:
    """Parameters of each block, and outside of all."""
    inside = {name: sum(p.numel() for p in block.parameters()) for name, block in find_blocks(model).items()}
    return inside, sum(p.numel() for p in model.parameters()) - sum(inside.values())


def test_only_the_blocks_in_turn_train_and_take_memory(tiny: PreTrainedModel, train_tiny: MakeTrainer) -> None:
    trainer = train_tiny(tiny, LISACallback(count=2, interval=2, seed=2))
    memory = Memory(tiny)
    inside, outside = sizes(tiny)
    trainer.add_callback(memory)
    trainer.train()
    expected = [blocks_to_train([*inside], 2, step, 2, seed=2) for step in range(6)]
    assert len(set(expected)) == 3
    assert memory.moved == expected
    trained = [outside + sum(inside[block] for block in blocks) for blocks in expected]
    assert memory.gradients == memory.moments == trained
    assert max(trained) < 0.8 * sum([outside, *inside.values()])
    assert verify_sparsity(tiny).ok
    assert all(parameter.requires_grad for parameter in tiny.parameters())
    record = sparsity_record(tiny)
    assert record is not None
    assert [(entry.recipe, entry.steps) for entry in record.training] == [("lisa", 6)]


def test_gradients_and_moments_of_pruned_weights_stay_zero(tiny: PreTrainedModel, train_tiny: MakeTrainer) -> None:
    class InTurn(Watcher):
        """Those that do not train have no gradient."""

        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            everything = self.pruned
            self.pruned = {p: mask for p, mask in everything.items() if p.grad is not None}
            assert 0 < len(self.pruned) < len(everything)
            super().on_pre_optimizer_step(*args, **kwargs)
            self.pruned = everything

    trainer = train_tiny(
        tiny, LISACallback(count=1, interval=1), gradient_accumulation_steps=2, max_grad_norm=0.1, weight_decay=0.1
    )
    watcher = InTurn(tiny)
    trainer.add_callback(watcher)
    trainer.train()
    assert watcher.steps == 6
    assert verify_sparsity(tiny).ok


def test_what_was_frozen_before_stays_frozen(tiny: PreTrainedModel, train_tiny: MakeTrainer) -> None:
    frozen = [tiny.get_parameter(n) for n in ("lm_head.weight", "model.layers.0.mlp.up_proj.weight")]
    before = [parameter.detach().clone() for parameter in frozen]
    for parameter in frozen:
        parameter.requires_grad_(False)
    train_tiny(tiny, LISACallback(interval=1)).train()
    assert all(map(torch.equal, before, frozen))
    assert sum(not parameter.requires_grad for parameter in tiny.parameters()) == 2


@pytest.mark.parametrize("step", [3, 4], ids=["within a period", "between two"])
def test_a_resumed_training_equals_an_uninterrupted_one(step: int, tmp_path: Path, train_tiny: MakeTrainer) -> None:
    def make(model: PreTrainedModel, folder: str = "parts") -> Trainer:
        callback = LISACallback(count=1, interval=2)
        return train_tiny(model, callback, output_dir=tmp_path / folder)

    def start(checkpoint: Path | None) -> PreTrainedModel:
        return prune_tiny() if checkpoint is None else AutoModelForCausalLM.from_pretrained(checkpoint)

    whole = make(prune_tiny(), "whole")
    whole.train()
    second = stop_and_resume(make, step, start, tmp_path / "parts")
    expected, found = state_of(whole.model), state_of(second.model)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_everything_trains_again_after_an_error(tiny: PreTrainedModel, train_tiny: MakeTrainer) -> None:
    callback = LISACallback(interval=1)
    trainer = train_tiny(tiny, callback)
    trainer.add_callback(Fail())
    with pytest.raises(RuntimeError, match="mine"):
        trainer.train()
    with pytest.raises(ValueError, match=r"call its close\(\) before you make the Trainer"):
        train_tiny(tiny, LISACallback(interval=1)).train()
    callback.close()
    assert all(parameter.requires_grad for parameter in tiny.parameters())
    assert not has_hooks(tiny)
    train_tiny(tiny, callback, max_steps=1).train()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "count=0 is not allowed"),
        ({"interval": 0}, "interval=0 is not allowed"),
        ({"seed": -1}, "seed=-1 is not allowed"),
    ],
)
def test_settings_that_are_not_allowed_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LISACallback(**settings)


def test_more_blocks_than_there_are_are_refused(tiny: PreTrainedModel, train_tiny: MakeTrainer) -> None:
    before = tiny.config.mwanda_config
    with pytest.raises(ValueError, match="count=4 is not allowed: give 0 to 3, as many blocks as the model has"):
        train_tiny(tiny, LISACallback(count=4)).train()
    assert tiny.config.mwanda_config == before
    assert not has_hooks(tiny)


def test_blocks_are_where_the_record_says(monkeypatch: pytest.MonkeyPatch) -> None:
    find, asked = pruned_entries.find_blocks, []
    monkeypatch.setattr(pruned_entries, "find_blocks", lambda model, path: asked.append(path) or find(model, path))
    assert [*recorded_blocks(make_model())] == [f"model.layers.{number}" for number in range(3)]
    assert [*recorded_blocks(prune_tiny(blocks="model.layers"))] == [f"model.layers.{number}" for number in range(3)]
    assert [*map(list, filter(None, asked))] == [["model.layers"]]
