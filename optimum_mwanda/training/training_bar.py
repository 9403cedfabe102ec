"""The progress of a training, like that of everything else here."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import datasets
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class TrainingBar(TrainerCallback):
    """A bar with the remaining time on standard error, which the main process shows."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Shows it."""
        self._bar = tqdm(total=state.max_steps, desc="Training", disable=not state.is_world_process_zero)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Moves it on."""
        self._bar.update()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leaves it as it is."""
        self._bar.close()


@contextmanager
def mapping_bars(show: bool) -> Iterator[None]:
    """Hides the bars that `datasets` shows when it maps rows inside a `with` block, unless they shall be shown."""
    were_hidden = datasets.are_progress_bars_disabled()
    if not show:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not were_hidden:
            datasets.enable_progress_bars()
