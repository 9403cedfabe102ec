"""What a callback is not told: which `Trainer` calls it, and from where that resumes."""

import inspect
from typing import Any

from transformers import Trainer


def calling_trainer() -> Any:
    """Finds the `Trainer` from within a callback; None if none calls.

    A callback is not given its `Trainer`, but what it adds to the log must be there before the trackers see it, and
    only `Trainer.create_model_card` knows when the card has been written.
    """
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, Trainer):
            return caller
        frame = frame.f_back
    return None


def resumed_checkpoint() -> str | None:
    """Finds the checkpoint from which the calling `Trainer` resumes; None if it does not.

    A `Trainer` loads weights from there, but not the config, which holds the record.
    """
    frame = inspect.currentframe()
    while frame is not None:
        found = frame.f_locals.get("resume_from_checkpoint")
        if isinstance(frame.f_locals.get("self"), Trainer) and isinstance(found, str):
            return found
        frame = frame.f_back
    return None
