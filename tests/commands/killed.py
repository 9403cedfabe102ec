"""Runs commands that try many settings, whole and killed again and again; what the killed ones took goes to a file.

python -m tests.commands.killed FOLDER

FOLDER holds `model` and `texts.jsonl`. For each command there is `NAME-whole` and `NAME-again` then.
"""

import json
import os
import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers.models.llama.modeling_llama  # noqa: F401 - so that not each process imports it anew

import optimum_mwanda.experiments.grid.runner
import optimum_mwanda.experiments.plans.evolution
import optimum_mwanda.experiments.search.bisection
import optimum_mwanda.sharing.folder
import optimum_mwanda.storage.journal  # noqa: F401
from tests.commands.conftest import run_here
from tests.killing import at_step, steps_until_the_end

PARTS = (0, 1, 1, 1, 2)
"""How many results more each process finishes before it is killed, some steps later."""
TEXT = ("--dataset", "texts.jsonl", "--sequence-length", "16", "--samples-per-language", "2", "--quiet")
HELD_OUT = ("--eval-dataset", "texts.jsonl", "--tokens-per-language", "64")
COMMANDS: dict[str, Callable[[str], tuple[Any, ...]]] = {
    "compare": lambda out: ("model", "--results", f"{out}/runs.jsonl", *HELD_OUT, *TEXT, "--sparsities", "0.5", "0.6"),
    "search": lambda out: (
        *("model", f"{out}/pruned", "--trials", f"{out}/trials.json", *HELD_OUT, *TEXT),
        *("--max-degradation", "0.01", "--bounds", "0.2", "0.9", "--resolution", "0.01"),
    ),
    "allocate": lambda out: ("model", f"{out}/plan.json", *TEXT, "--sparsity", "0.6", "--search", "12"),
}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    os.chdir(folder)
    randomly = random.Random(0)
    took = {}
    for name, words in COMMANDS.items():

        def work(out: str, name: str = name, words: Callable[[str], tuple[Any, ...]] = words) -> None:
            run = run_here(name, *words(f"{folder}/{name}-{out}"))
            if run.code:
                raise RuntimeError(run.err)

        def finished(again: Path = Path(f"{name}-again")) -> int:
            lines = sum(path.read_bytes().count(b"\n") for path in again.glob("*.jsonl"))
            return lines + len(list(again.glob(".*/progress/*.safetensors")))

        for out in ("whole", "again"):
            Path(f"{name}-{out}").mkdir()
        steps = steps_until_the_end(partial(work, "whole"), folder)
        took[name] = [steps]
        for parts in randomly.sample(PARTS, len(PARTS)):
            wanted, there = finished() + parts, at_step(randomly.randrange(steps // 10))
            is_due = partial(lambda done, wanted, there: done() >= wanted and there(), finished, wanted, there)
            took[name].append(steps_until_the_end(partial(work, "again"), folder, is_due))
        took[name].append(steps_until_the_end(partial(work, "again"), folder))
    Path("took.json").write_text(json.dumps(took))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
