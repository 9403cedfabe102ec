"""One of several processes fails; each process writes how it ended."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed import distributed_c10d
from transformers import PreTrainedModel

from optimum_mwanda import MWandaConfig, MWandaPruner
from optimum_mwanda.processes.group import Processes
from optimum_mwanda.walking import together

from ..conftest import assert_untouched, make_model, make_rows, state_of

SETTINGS = {"sequence_length": 24, "samples_per_language": 2, "batch_size": 1}


def other_text(model: PreTrainedModel, rows: list[dict[str, Any]]) -> None:
    rows[0]["input_ids"][0] = 1


def other_weights(model: PreTrainedModel, rows: list[dict[str, Any]]) -> None:
    with torch.no_grad():
        model.lm_head.weight[0, 0] = 7


def no_text(model: PreTrainedModel, rows: list[dict[str, Any]]) -> None:
    rows.clear()


def no_memory(model: PreTrainedModel, rows: list[dict[str, Any]]) -> None:
    """When the first block is pruned."""

    def run_out(*_: Any) -> None:
        if (model.model.layers[0].mlp.down_proj.weight == 0).any():
            raise MemoryError("no memory is left")

    model.model.layers[1].register_forward_pre_hook(run_out)


def no_room_for_sums(model: PreTrainedModel, rows: list[dict[str, Any]]) -> None:
    """While what is to be added up is put together, once."""
    join = torch.cat

    def run_out(*_: Any) -> None:
        torch.cat = join
        raise MemoryError("no memory is left for sums")

    add_up = Processes.add_up

    def add_up_without_memory(self: Processes, tensors: Any) -> Any:
        Processes.add_up = add_up
        torch.cat = run_out
        return add_up(self, tensors)

    Processes.add_up = add_up_without_memory


def other_choice(model: PreTrainedModel, rows: list[dict[str, Any]]) -> None:
    choose = together.mask_and_values

    def choose_otherwise(*args: Any) -> Any:
        pruned, values = choose(*args)
        together.mask_and_values = choose
        return pruned.roll(1), values

    together.mask_and_values = choose_otherwise


def no_choice(at: int) -> None:
    """For one of the next weights."""
    choose, calls = together.mask_and_values, []

    def give_up(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            together.mask_and_values = choose
            raise ValueError("the matrix is not positive definite")
        return choose(*args)

    together.mask_and_values = give_up


def infinite(model: PreTrainedModel, rows: list[dict[str, Any]]) -> None:
    """On every process: a token that only the last language has."""
    with torch.no_grad():
        model.get_input_embeddings().weight[95] = torch.inf
    rows[-1]["input_ids"][:] = [95] * len(rows[-1]["input_ids"])


ON_ONE: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "other text": (other_text, {}),
    "other weights": (other_weights, {}),
    "no text": (no_text, {}),
    "no memory": (no_memory, {"calibration": "sequential"}),
    "no room for sums": (no_room_for_sums, {}),
    "other choice": (other_choice, {}),
}
"""What goes wrong in the second process."""
ON_ALL = {"infinite": (infinite, {})}
REASONS = {**ON_ONE, **ON_ALL}


def fail(name: str, rank: int) -> dict[str, Any]:
    model, rows = make_model(), make_rows(rows=2, length=24)
    go_wrong, settings = REASONS.get(name, (None, {}))
    if go_wrong is not None and (rank == 1 or name in ON_ALL):
        go_wrong(model, rows)
    before = state_of(model)
    try:
        MWandaPruner(MWandaConfig(**SETTINGS, **settings), progress=False).prune(model, rows)
    except Exception as error:
        if name != "no memory" or rank == 0:  # that has a hook of its own
            assert_untouched(model, before)
        return {"type": type(error).__name__, "message": str(error), "notes": getattr(error, "__notes__", [])}
    return {"type": "", "message": "", "notes": []}


def in_turn(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """All failures in the same group; in the end, the second process does something else until the first gives up."""
    found = {name: fail(name, rank) for name in REASONS}
    distributed.barrier()
    distributed_c10d._set_pg_timeout(timedelta(seconds=1), None)
    if rank == 0:
        found["wait"] = fail("none", rank)
        (folder / "given up").write_bytes(b"")
    else:
        (folder / "given up").read_bytes()  # a pipe
        found["wait"] = fail("none", rank)
    return found
