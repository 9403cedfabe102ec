"""Starts a function in several real processes, which share one import of the heavy libraries."""

import json
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import distributed

SECONDS = 60
"""How long a process waits for another one; on a busy machine it takes long to start one."""

Work: TypeAlias = Callable[[int, int, Path], Any]
"""Is given the rank, the number of processes and a folder; gives values of JSON."""

_context = multiprocessing.get_context("forkserver")
_MODULES = ("pruning", "failing", "sharded", "split", "streaming")
_context.set_forkserver_preload([f"tests.processes.{name}" for name in _MODULES])


def start(work: Work, size: int, folder: Path) -> list[int]:
    """Runs it in a group of processes and gives their exit codes; what they find is in `RANK.json`."""
    started = [_context.Process(target=_run, args=(work, rank, size, folder)) for rank in range(size)]
    for process in started:
        process.start()
    for process in started:
        process.join(600)
        process.kill()
    return [process.exitcode or 0 for process in started]


def results(work: Work, size: int, folder: Path) -> list[Any]:
    """What the processes find."""
    check(start(work, size, folder), [0] * size, folder)
    return read(folder, range(size))


def check(codes: list[int], expected: list[int], folder: Path) -> None:
    """Checks how the processes ended."""
    assert codes == expected, "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.error")))


def read(folder: Path, ranks: Iterable[int]) -> list[Any]:
    """What some processes have found."""
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in ranks]


def _run(work: Work, rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    timeout = timedelta(seconds=SECONDS)
    try:
        distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size, timeout=timeout
        )
        found = work(rank, size, folder)
        (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    except BaseException:
        (folder / f"{rank}.error").write_text(traceback.format_exc(), encoding="utf-8")
        os._exit(1)
    os._exit(0)
