"""Prunes checkpoints on disk in several processes, of which one may be killed; each process writes what it saw."""

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import distributed

from optimum_mwanda import MWandaConfig, prune_checkpoint
from optimum_mwanda.processes.group import work_alone
from optimum_mwanda.storage.journal import Journal, OtherRunError

from ..conftest import make_model, make_rows
from ..families.matrix import FAMILIES

SMALL: dict[str, Any] = {"sequence_length": 24, "batch_size": 2, "samples_per_language": 4}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "defaults": ("llama", {}),
    "swap": ("qwen3", {"calibration": "sequential", "refinement": "swap"}),
    "experts": ("mixtral", {"min_expert_tokens": 1}),
    "stacks": ("bart", {"calibration": "sequential"}),
}
KILLED = {"calibration": "sequential", "allocation": "owl"}
"""Settings of the run in which a process is killed."""


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def prune(source: Path, target: Path, settings: dict[str, Any], rows: int = 3) -> None:
    text = [{**row, "labels": row["input_ids"][::-1]} for row in make_rows(rows=rows, length=24)]
    prune_checkpoint(source, target, MWandaConfig(**{**SMALL, **settings}), text, progress=False)


def compare(rank: int, folder: Path, name: str) -> dict[str, Any]:
    """Prunes in all processes, and in the first one alone as well."""
    family, settings = SETTINGS[name]
    source, shared, alone = (folder / f"{name}-{each}" for each in ("dense", "shared", "alone"))
    if rank == 0:
        FAMILIES[family].make().save_pretrained(source)
    distributed.barrier()
    prune(source, shared, settings)
    found: dict[str, Any] = {"left": sorted(path.name for path in folder.glob(f"*{name}*")), "differ": 0, "pruned": 0}
    if rank == 0:
        with work_alone():
            prune(source, alone, settings)
        one, other = (load_file(path / "model.safetensors") for path in (shared, alone))
        found["same names"] = one.keys() == other.keys() and digests(shared).keys() == digests(alone).keys()
        for key, values in other.items():
            found["differ"] += int(((values == 0) != (one[key] == 0)).sum())
            found["pruned"] += int((values == 0).sum())
    distributed.barrier()
    return found


def in_all(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """All settings; then a run to the end, and one in which the last process is killed."""
    found: dict[str, Any] = {name: compare(rank, folder, name) for name in (SETTINGS if size == 2 else ["defaults"])}
    if rank == 0:
        make_model().save_pretrained(folder / "dense")
    distributed.barrier()
    prune(folder / "dense", folder / "whole", KILLED)
    return found | {"killed": end(rank, folder, victim=size - 1)}


def end(rank: int, folder: Path, victim: int) -> dict[str, str]:
    """What an abrupt end of one process, which has its part of the second block to keep, means for the others."""
    put = Journal.put

    def last(self: Journal, kind: str, name: str, *args: Any) -> Path:
        if kind == "pruned" and name.startswith("model.layers.1"):
            os.kill(os.getpid(), signal.SIGKILL)
        return put(self, kind, name, *args)

    if rank == victim:
        Journal.put = last  # type: ignore[method-assign]
    try:
        prune(folder / "dense", folder / "out", KILLED)
    except Exception as error:
        return {"type": type(error).__name__, "message": str(error)}
    return {}


def go_on(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """The run goes on; before that, one process alone tries to."""
    refused = ""
    if rank == 0:
        with work_alone():
            try:
                prune(folder / "dense", folder / "out", KILLED)
            except OtherRunError as error:
                refused = str(error)
    distributed.barrier()
    put, parts = Journal.put, []

    def counted(self: Journal, kind: str, name: str, *args: Any) -> Path:
        parts.append(f"{kind} {name}")
        return put(self, kind, name, *args)

    Journal.put = counted  # type: ignore[method-assign]
    prune(folder / "dense", folder / "out", KILLED)
    return {"refused": refused, "parts": parts, "same": digests(folder / "out") == digests(folder / "whole")}


def lose_the_first(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """The first process is killed."""
    return end(rank, folder, victim=0)
