"""Prunes in several processes that share the text, and in one; each process writes what it saw."""

import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from optimum_mwanda import MWandaConfig, MWandaPruner, evaluate_languages, sparsity_record
from optimum_mwanda.calibration.reduction import deal
from optimum_mwanda.data.chunks import build_chunks
from optimum_mwanda.experiments.grid.plan import ComparisonPlan
from optimum_mwanda.experiments.grid.runner import run_comparison
from optimum_mwanda.modeling.block_source import BlockSource
from optimum_mwanda.modeling.blocks import find_blocks, inference_mode
from optimum_mwanda.modeling.weights import find_weights, flat
from optimum_mwanda.processes.group import Processes, work_alone
from optimum_mwanda.walking import together
from optimum_mwanda.walking.calibrating import calibrate

from ..conftest import make_rows
from ..families.matrix import FAMILIES


@dataclasses.dataclass(frozen=True)
class Case:
    """A pruning.

    Attributes:
        family: Of the model.
        settings: Of the pruning.
        rows: Rows per language.
    """

    family: str
    settings: dict[str, Any]
    rows: int = 3

    @property
    def config(self) -> MWandaConfig:
        return MWandaConfig(**{"sequence_length": 24, "batch_size": 2, "samples_per_language": 4, **self.settings})

    @property
    def data(self) -> list[dict[str, Any]]:
        rows = make_rows(rows=self.rows, length=24)
        return (
            [{**row, "labels": row["input_ids"][::-1]} for row in rows] if self.family in ("t5", "nllb-moe") else rows
        )


CASES = {
    "defaults": Case("llama", {}),
    "wanda": Case("llama", {"criterion": "wanda", "allocation": "uniform", "language_weights": "proportional"}),
    "sequential": Case("qwen3", {"calibration": "sequential", "allocation": "owl"}),
    "swap": Case("llama", {"refinement": "swap", "allocation": "outliers"}),
    "sensitivity": Case("llama", {"refinement": "swap", "sensitivity": "fisher", "group": "matrix"}),
    "obs": Case("gpt2", {"reconstruction": "obs"}),
    "dense obs": Case("llama", {"reconstruction": "obs", "calibration": "dense"}),
    "sparsegpt": Case("llama", {"criterion": "sparsegpt", "group": "matrix", "damping": 0.1}),
    "stacks": Case("t5", {"calibration": "sequential", "refinement": "swap"}),
    "experts": Case(
        "mixtral",
        {"reconstruction": "obs", "min_expert_tokens": 1, "sequence_length": 2, "samples_per_language": 1},
        rows=1,
    ),
    "modules": Case("nllb-moe", {"reconstruction": "obs", "min_expert_tokens": 1}, rows=1),
    "idle": Case("llama", {"reconstruction": "obs"}, rows=1),
}

IN_FOUR = ("defaults", "sequential", "swap", "experts", "idle")


def compare(case: Case, rank: int, size: int) -> dict[str, Any]:
    """Prunes in all processes, and in the first one alone as well."""
    make: Callable[[], PreTrainedModel] = FAMILIES[case.family].make
    shared = make()
    pruner = MWandaPruner(case.config, progress=False)
    with counted_decisions() as decided:
        pruner.prune(shared, case.data)
    record = sparsity_record(shared)
    assert record is not None
    own, _ = deal(build_chunks(case.data, case.config, shared), Processes(rank, size))
    found = {
        "sparsity": record.achieved_sparsity,
        "weights": float(sum(tensor.double().abs().sum() for tensor in shared.state_dict().values())),
        "decided": sum(decided),
        "rows": sum(weight.out_features for weight in matrices(shared)),
        "languages": list(own.chunks),
        "chunks": sum(len(part["input_ids"]) for parts in own.chunks.values() for part in parts),
        "coverage": [entry.chunks for entry in pruner.coverage],
        "unreached": unreached(make(), own, case.config) if own.chunks else 0,
    }
    if rank == 0:
        with work_alone():
            model = MWandaPruner(case.config, progress=False).prune(make(), case.data)
        found |= {"differ": 0, "pruned": 0, "apart": 0.0, "hooks": 0}
        for weight, other in zip(matrices(shared), matrices(model), strict=True):
            differ = (weight.matrix == 0) != (other.matrix == 0)
            rows = ~differ.any(1)
            found["differ"] += int(differ.sum())
            found["pruned"] += int((other.matrix == 0).sum())
            found["apart"] = max(found["apart"], float((weight.matrix - other.matrix)[rows].abs().max()))
        found["hooks"] = sum(len(module._forward_pre_hooks) for module in shared.modules())
    return found


@contextmanager
def counted_decisions() -> Iterator[list[int]]:
    """The numbers of rows of the weights about which this process decides."""
    decide, counts = together.mask_and_values, []

    def note(weight: Any, *args: Any) -> Any:
        pruned, values = decide(weight, *args)
        counts.append(len(pruned))
        return pruned, values

    together.mask_and_values = note
    try:
        yield counts
    finally:
        together.mask_and_values = decide


def measure(rank: int, size: int) -> dict[str, Any]:
    """Evaluates in all processes, and in the first one alone as well."""
    model, rows = FAMILIES["llama"].make(), make_rows(rows=3, length=40)
    settings = {"sequence_length": 16, "batch_size": 2, "progress": False}
    report = evaluate_languages(model, None, rows, **settings)
    found = {"report": report.to_json(), "is that of one process": True, "failure": ""}
    if rank == 0:
        with work_alone():
            found["is that of one process"] = evaluate_languages(model, None, rows, **settings) == report
    if rank == 1:
        rows.pop()
    try:
        evaluate_languages(model, None, rows, **settings)
    except ValueError as error:
        found["failure"] = str(error)
    return found


def compare_settings(rank: int, folder: Path) -> dict[str, Any]:
    """A grid of settings, of which the first process alone keeps the results; then once more, with nothing to do."""
    plan = ComparisonPlan(
        methods={"wanda": {"criterion": "wanda"}, "obs": {"reconstruction": "obs"}},
        sparsities=(0.5,),
        samples_per_language=2,
        sequence_length=16,
        tokens_per_language=64,
    )
    path, rows = folder / f"results-{rank}.jsonl", make_rows(rows=3, length=40)
    for _ in range(2):
        results = run_comparison(FAMILIES["llama"].make(), rows, rows, path, plan, progress=False)
    lines = path.read_text(encoding="utf-8").count("\n") if path.exists() else 0
    scores = {run.name: run.report.scores["sw"].nll for run in results.runs.values()}
    return {"runs": len(results.runs), "lines": lines, "scores": scores}


def unreached(model: PreTrainedModel, own: Any, config: MWandaConfig) -> int:
    """Experts that no token of this process reaches."""
    with work_alone(), inference_mode(model):
        blocks = find_blocks(model)
        tokens = calibrate(model, find_weights(blocks), own, config, BlockSource(blocks)).statistics.expert_tokens
    return sum(int(each.sum() == 0) for each in tokens.values())


def matrices(model: PreTrainedModel) -> list[Any]:
    return flat(find_weights(find_blocks(model)))


def in_two(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """All cases."""
    found = {name: compare(case, rank, size) for name, case in CASES.items()}
    return found | {"evaluation": measure(rank, size), "grid": compare_settings(rank, folder)}


def in_four(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """Some of them; then the third process is killed in the middle of the next one."""
    found = {name: compare(CASES[name], rank, size) for name in IN_FOUR}
    return found | {"killed": end(rank)}


def end(rank: int) -> dict[str, str]:
    """What an abrupt end of the third process means for the others."""
    case = CASES["defaults"]
    model = FAMILIES[case.family].make()
    if rank == 2:
        model.model.layers[1].register_forward_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    try:
        MWandaPruner(case.config, progress=False).prune(model, case.data)
    except Exception as error:
        return {"type": type(error).__name__, "message": str(error)}
    return {}
