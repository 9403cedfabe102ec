"""Prunes a checkpoint in processes that are killed again and again; how often, and what was left, goes to a file.

python -m tests.loading.killed FOLDER
"""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from optimum_mwanda import MWandaConfig, prune_checkpoint
from tests.conftest import make_rows
from tests.killing import at_step, steps_until_the_end

KILLS = 20


def prune(source: Path, target: Path) -> None:
    config = MWandaConfig(samples_per_language=2, sequence_length=16, calibration="sequential", allocation="owl")
    prune_checkpoint(source, target, config, make_rows("en sw", rows=4, length=16), progress=False)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    randomly = random.Random(0)
    progress = folder / ".again.mwanda" / "progress"

    def finished() -> int:
        return len(list(progress.glob("*.safetensors")))

    def some_steps_after(parts: int, steps: int) -> Callable[[], bool]:
        wanted, is_there = finished() + parts, at_step(steps)
        return lambda: finished() >= wanted and is_there()

    steps = steps_until_the_end(lambda: prune(folder / "dense", folder / "whole"), folder)
    left: list[int] = []
    while len(left) < KILLS:
        # After a part, or anywhere: while the model is loaded, a block is worked on, or a file is written.
        is_due = some_steps_after(randomly.choice([0, 0, 1]), randomly.randrange(steps // KILLS))
        if steps_until_the_end(lambda: prune(folder / "dense", folder / "again"), folder, is_due):
            break
        left.append(finished())
    if not (folder / "again").is_dir():
        prune(folder / "dense", folder / "again")
    (folder / "left.json").write_text(json.dumps(left))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
