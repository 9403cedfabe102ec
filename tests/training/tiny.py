"""A tiny pruned model, for tests that train often."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from optimum_mwanda import MWandaConfig, MWandaPruner

from ..conftest import make_model


class Stop(TrainerCallback):
    """Saves a checkpoint after some steps, and ends the training, as an interruption would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = control.should_save = state.global_step == self.step


class Fail(TrainerCallback):
    """Fails after the first step."""

    def on_step_end(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("mine")


def short_rows(count: int = 12) -> list[dict[str, list[int]]]:
    """Rows for training that a tiny model can read."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 90, (count, 12), generator=generator).tolist()
    return [{"input_ids": row, "labels": row} for row in ids]


def prune_tiny(family: str = "llama", **settings: Any) -> PreTrainedModel:
    """A tiny random model, pruned without data."""
    if "pattern" not in settings:
        settings = {"sparsity": 0.6, **settings}
    config = MWandaConfig(criterion="magnitude", allocation="uniform", **settings)
    return MWandaPruner(config, progress=False).prune(make_model(family))


def stop_and_resume(
    make: Callable[[PreTrainedModel], Trainer],
    step: int,
    start: Callable[[Path | None], PreTrainedModel],
    folder: Path,
    path: Callable[[str], Any] = str,
) -> Trainer:
    """Trains up to a step, and then from its checkpoint on in another `Trainer`.

    Args:
        make: Makes a `Trainer` that writes into the folder.
        step: Where to stop.
        start: Makes the model, of the checkpoint if one is given.
        folder: The same folder.
        path: Makes what the `Trainer` is told of the name of the checkpoint.
    """
    first = make(start(None))
    first.add_callback(Stop(step))
    first.train()
    checkpoint = get_last_checkpoint(folder)
    assert checkpoint is not None
    second = make(start(Path(checkpoint)))
    second.train(resume_from_checkpoint=path(checkpoint))
    return second
