"""Prunes models of which every process holds a part."""

from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from transformers import PreTrainedModel

from optimum_mwanda import MWandaConfig, MWandaPruner, evaluate_languages, sparsity_record, verify_sparsity
from optimum_mwanda.modeling.counting import count_zeros
from optimum_mwanda.modeling.sharding import is_sharded, own_part, whole
from optimum_mwanda.processes.group import work_alone
from optimum_mwanda.record.matrices import loaded_matrices

from ..conftest import make_model, make_rows
from ..families.matrix import FAMILIES
from . import failing

SETTINGS: dict[str, Any] = {"sequence_length": 24, "samples_per_language": 4, "batch_size": 2}
MEASURED: dict[str, Any] = {"sequence_length": 16, "batch_size": 2, "progress": False}


def shard(model: PreTrainedModel) -> PreTrainedModel:
    for block in model.model.layers:
        fully_shard(block)
    fully_shard(model)
    return model


def prune(family: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The same pruning of a shared model and of a whole one."""
    rows, config = make_rows(rows=3, length=24), MWandaConfig(**SETTINGS, **settings)
    model = shard(make_model(family))
    held = dict(model.named_parameters())
    MWandaPruner(config, progress=False).prune(model, rows)
    report = evaluate_languages(model, None, rows, **MEASURED)
    found = {
        "sharded": all(map(is_sharded, model.parameters())),
        "parts": all(len(own_part(parameter)) < len(parameter) for parameter in model.parameters()),
        "same parameters": all(held[name] is parameter for name, parameter in model.named_parameters()),
        "verified": verify_sparsity(model).ok,
    }
    with work_alone():
        other = MWandaPruner(config, progress=False).prune(make_model(family), rows)
        expected = evaluate_languages(other, None, rows, **MEASURED)
    records = [sparsity_record(each).to_dict() for each in (model, other)]
    found["record"] = records[0] == records[1]
    states = zip(model.parameters(), other.parameters(), strict=True)
    found["differ"] = sum(int((whole(one) != two).sum()) for one, two in states)
    found["report"] = max(abs(report.scores[name].nll - score.nll) for name, score in expected.scores.items())
    return found


def refusal(model: PreTrainedModel, **settings: Any) -> str:
    try:
        MWandaPruner(MWandaConfig(**SETTINGS, **settings), progress=False).prune(model, make_rows())
    except ValueError as error:
        return str(error)
    return ""


def restored() -> dict[str, Any]:
    """A failure after all masks are written."""
    model = shard(make_model())
    if distributed.get_rank() == 1:
        failing.other_choice(model, [])
    said = refusal(model)
    expected = make_model().parameters()
    same = all(bool((whole(one) == two).all()) for one, two in zip(model.parameters(), expected, strict=True))
    return {"said": said, "same": same}


def counted() -> dict[str, Any]:
    """Zeros of tensors that are shared out in several ways, and what was gathered for it."""
    mesh, gather, sizes = init_device_mesh("cpu", (distributed.get_world_size(),)), DTensor.full_tensor, []

    def noted(self: DTensor) -> torch.Tensor:
        sizes.append(self.numel())
        return gather(self)

    values = torch.arange(105).view(5, 7, 3) % 4  # neither 5 rows nor 7 columns are as many for each of two processes
    places = {"rows": Shard(0), "columns": Shard(1), "all of it": Replicate()}
    tensors = {name: distribute_tensor(values, mesh, [place]) for name, place in places.items()}
    model = shard(make_model())
    MWandaPruner(MWandaConfig(**SETTINGS), progress=False).prune(model, make_rows())
    DTensor.full_tensor = noted
    try:
        zeros = {name: count_zeros(tensor) for name, tensor in tensors.items()}
        matrices = loaded_matrices(model)
        pruned = sum(matrices[found.name].count_zeros() for found in sparsity_record(model).matrices)
    finally:
        DTensor.full_tensor = gather
    expected = sum(found.zeros for found in sparsity_record(model).matrices)
    return {"zeros": zeros, "expected": int((values == 0).sum()), "record": pruned == expected > 0, "sizes": sizes}


def in_two(rank: int, size: int, folder: Path) -> dict[str, Any]:
    parallel = make_model()
    mesh = init_device_mesh("cpu", (size,))
    whole_output = ColwiseParallel(output_layouts=Replicate())
    parallelize_module(parallel, mesh, {f"model.layers.{each}.mlp.up_proj": whole_output for each in range(3)})
    parallel_report, report = (
        evaluate_languages(model, None, make_rows(), **MEASURED) for model in (parallel, make_model())
    )
    return {
        "defaults": prune("llama", {}),
        "ria": prune("qwen3", {"allocation": "owl", "criterion": "ria"}),
        "magnitude": prune("llama", {"criterion": "magnitude", "allocation": "alpha"}),
        "restored": restored(),
        "counted": counted(),
        "blockwise": refusal(shard(make_model()), calibration="sequential"),
        "experts": refusal(shard(FAMILIES["mixtral"].make())),
        "apart": max(abs(parallel_report.scores[name].nll - score.nll) for name, score in report.scores.items()),
    }
