"""What a callback is not told: which `Trainer` calls it, and from where that resumes."""

import inspect
import os
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import Trainer


def calling_trainer() -> Any:
    """Finds the `Trainer` from within a callback; None if none calls.

    A callback is not given its `Trainer`, but what it adds to the log must be there before the trackers see it, and
    only `Trainer.create_model_card` knows when the card has been written.
    """
    return next((names["self"] for names in _calls_of_trainers()), None)


def resumed_checkpoint() -> str | None:
    """Finds the checkpoint from which the calling `Trainer` resumes; None if it does not.

    A `Trainer` loads weights from there, but not the config, which holds the record.
    """
    given = (names.get("resume_from_checkpoint") for names in _calls_of_trainers())
    return next((os.fspath(path) for path in given if isinstance(path, (str, os.PathLike))), None)


def _calls_of_trainers() -> Iterator[Mapping[str, Any]]:
    """The local names of every call of a method of a `Trainer` that led here, the last call first."""
    frame = inspect.currentframe()
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), Trainer):
            yield frame.f_locals
        frame = frame.f_back
