"""Prunes tensor-parallel models in several processes, and whole ones in one; each process writes what it saw."""

import inspect
from pathlib import Path
from typing import Any

from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import PreTrainedModel
from transformers.distributed import DistributedConfig

from optimum_mwanda import MWandaConfig, MWandaPruner, evaluate_languages, sparsity_record, verify_sparsity
from optimum_mwanda.modeling.sharding import is_sharded, own_part, whole
from optimum_mwanda.processes.group import work_alone

from ..conftest import make_model, make_rows
from ..families.matrix import FAMILIES
from . import failing
from .sharded import MEASURED, refusal

SETTINGS: dict[str, Any] = {"sequence_length": 24, "samples_per_language": 4, "batch_size": 2}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "defaults": ("llama", {}),
    "activity": ("qwen3", {"activation": "above_rms", "allocation": "alpha"}),
    "sequential": ("gemma3_text", {"calibration": "sequential", "allocation": "owl"}),
    "swap": ("phi3", {"refinement": "swap"}),
    "obs": ("llama", {"reconstruction": "obs"}),
    "sparsegpt": ("gpt_neox", {"criterion": "sparsegpt", "group": "matrix", "damping": 0.1}),
    "experts": ("mixtral", {"refinement": "swap", "min_expert_tokens": 1}),
    "experts without Gram": ("qwen3_moe", {"min_expert_tokens": 1, "allocation": "owl"}),
}
IN_FOUR = ("sparsegpt",)


def load(path: Path, model: PreTrainedModel, size: int) -> PreTrainedModel:
    """A saved model as transformers shares it out."""
    return type(model).from_pretrained(path, distributed_config=DistributedConfig(tp_plan="auto", tp_size=size))


def is_old() -> bool:
    """Whether this version of transformers shares models out in another way."""
    return "tp_plan" not in inspect.signature(DistributedConfig).parameters


def split(model: PreTrainedModel, size: int) -> PreTrainedModel:
    """A model as torch shares it out."""
    mesh = init_device_mesh("cpu", (size,))
    styles = dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ColwiseParallel())
    styles |= dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), ColwiseParallel())
    styles |= dict.fromkeys(("self_attn.o_proj", "mlp.down_proj"), RowwiseParallel())
    for block in model.model.layers:
        parallelize_module(block, mesh, styles)
    return model


def compare(model: PreTrainedModel, whole_model: PreTrainedModel, config: MWandaConfig, rows: Any) -> dict[str, Any]:
    """The same pruning of a model that is shared out and of a whole one."""
    held = dict(model.named_parameters())
    MWandaPruner(config, progress=False).prune(model, rows)
    report = evaluate_languages(model, None, rows, **MEASURED)
    with work_alone():
        MWandaPruner(config, progress=False).prune(whole_model, rows)
        expected = evaluate_languages(whole_model, None, rows, **MEASURED)
    pairs = zip(model.parameters(), whole_model.parameters(), strict=True)
    states = [(whole(one.detach()), two.detach()) for one, two in pairs]
    sharded = [parameter for parameter in model.parameters() if is_sharded(parameter)]
    return {
        "parts": sum(own_part(each).numel() < each.numel() for each in sharded),
        "same parameters": all(held[name] is each for name, each in model.named_parameters()),
        "record": sparsity_record(model) == sparsity_record(whole_model),
        "pruned": sum(int((two == 0).sum()) for _, two in states),
        "differ": sum(int(((one == 0) != (two == 0)).sum()) for one, two in states),
        "apart": max(float((one - two).abs().max()) for one, two in states),
        "report": max(abs(report.scores[name].nll - score.nll) for name, score in expected.scores.items()),
    }


def by_transformers(name: str, size: int, folder: Path) -> dict[str, Any]:
    """A case with a model that transformers shares out, saved and read again."""
    family, settings = CASES[name]
    path, output, plain = folder / name, folder / f"{name} pruned", FAMILIES[family].make()
    if distributed.get_rank() == 0:
        plain.save_pretrained(path)
    distributed.barrier()
    model, config = load(path, plain, size), MWandaConfig(**SETTINGS, **settings)
    found = compare(model, type(plain).from_pretrained(path), config, FAMILIES[family].rows())
    model.save_pretrained(output)
    distributed.barrier()
    with work_alone():
        saved = type(plain).from_pretrained(output)
    pairs = zip(model.named_parameters(), saved.parameters(), strict=True)
    found["saved"] = all(bool((whole(one.detach()) == two).all()) for (_, one), two in pairs)
    found["verified"] = verify_sparsity(model).ok and verify_sparsity(output).ok
    return found


def by_torch(size: int) -> dict[str, Any]:
    model = split(make_model(), size)
    settings = {"calibration": "sequential", "refinement": "swap"}
    return compare(model, make_model(), MWandaConfig(**SETTINGS, **settings), make_rows(rows=3, length=24))


def restored(size: int) -> dict[str, Any]:
    """A failure of one process when some weights have new values."""
    model = split(make_model(), size)
    if distributed.get_rank() == 1:
        failing.no_choice(at=9)
    said = refusal(model, reconstruction="obs")
    expected = make_model().parameters()
    same = all(bool((whole(one) == two).all()) for one, two in zip(model.parameters(), expected, strict=True))
    return {"said": said, "same": same}


def twice_shared(size: int) -> str:
    """What is said of a model that FSDP2 shares out as well."""
    mesh = init_device_mesh("cpu", (1, size), mesh_dim_names=("data", "tensor"))
    model = make_model()
    for block in model.model.layers:
        parallelize_module(
            block, mesh["tensor"], {"mlp.up_proj": ColwiseParallel(), "mlp.down_proj": RowwiseParallel()}
        )
        fully_shard(block, mesh=mesh["data"])
    return refusal(model)


def in_two(rank: int, size: int, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {} if is_old() else {name: by_transformers(name, size, folder) for name in CASES}
    return found | {"torch": by_torch(size), "restored": restored(size), "twice": twice_shared(size)}


def in_four(rank: int, size: int, folder: Path) -> dict[str, Any]:
    return {} if is_old() else {name: by_transformers(name, size, folder) for name in IN_FOUR}
