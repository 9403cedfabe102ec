"""Prunes a checkpoint in processes that are killed again and again; how often, and what was left, goes to a file.

python -m tests.loading.killed FOLDER
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from optimum_mwanda import MWandaConfig, prune_checkpoint
from tests.conftest import make_rows

KILLS = 20


def prune(source: Path, target: Path, overwrite: bool = False) -> None:
    config = MWandaConfig(samples_per_language=2, sequence_length=16, calibration="sequential", allocation="owl")
    rows = make_rows("en sw", rows=4, length=16)
    prune_checkpoint(source, target, config, rows, progress=False, overwrite=overwrite)


def killed_once(source: Path, target: Path, parts: int, seconds: float) -> tuple[bool, int]:
    """Starts a process and kills it when it has added some parts, or if it need not add any, after a time.

    Returns:
        Whether it was killed, and the parts that are finished now.
    """
    progress = target.with_name(f".{target.name}.mwanda") / "progress"

    def finished() -> int:
        return len(list(progress.glob("*.safetensors")))

    wanted, end = finished() + parts, time.monotonic() + seconds
    child = os.fork()
    if not child:
        code = 1
        try:
            prune(source, target)
            code = 0
        finally:
            os._exit(code)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if finished() >= wanted if parts else time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True, finished()
        time.sleep(0.001)
    return False, finished()


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    randomly = random.Random(0)
    start = time.monotonic()
    prune(folder / "dense", folder / "whole")
    seconds = time.monotonic() - start
    left = []
    while len(left) < KILLS:
        # After a part, or anywhere: while the model is loaded, a block is worked on, or a file is written.
        parts = randomly.choice([0, 1, 1, 1])
        killed, parts = killed_once(folder / "dense", folder / "again", parts, randomly.uniform(0, seconds / 5))
        if not killed:
            break
        left.append(parts)
    if not (folder / "again").is_dir():
        prune(folder / "dense", folder / "again")
    (folder / "left.json").write_text(json.dumps(left))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
