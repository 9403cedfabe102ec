"""Trains pruned models in two real processes that torchrun starts; each writes what it saw to rank-N.json."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel, Trainer, TrainingArguments

from optimum_mwanda import (
    GradualPruningCallback,
    LISACallback,
    MWandaCallback,
    MWandaConfig,
    RigLCallback,
    keep_masks,
    read_masks,
    verify_sparsity,
)
from optimum_mwanda.modeling.sharding import own_part, whole
from optimum_mwanda.training.keeper import MaskKeeper

from ..conftest import make_rows as make_text
from .conftest import prune_sample

STEPS = 3


def make_rows() -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 6000, (4 * STEPS, 16), generator=generator).tolist()
    return [{"input_ids": row, "labels": row} for row in ids]


def with_trainer(folder: Path, callback: MWandaCallback, **arguments: Any) -> dict[str, Any]:
    """A `Trainer`, which wraps the model in DistributedDataParallel."""
    model = prune_sample()
    before = read_masks(model)
    args = TrainingArguments(
        folder / callback.recipe,
        max_steps=STEPS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        report_to=[],
        disable_tqdm=True,
        save_strategy="steps",
        save_steps=STEPS,
        logging_steps=1,
        use_cpu=True,
        **arguments,
    )
    trainer = Trainer(model=model, args=args, train_dataset=make_rows(), callbacks=[callback])
    trainer.train()
    distributed.barrier()
    return {
        "processes": args.world_size,
        "sparsity": [entry["sparsity"] for entry in trainer.state.log_history],
        "in memory": verify_sparsity(model).ok,
        "saved": verify_sparsity(folder / callback.recipe / f"checkpoint-{STEPS}").ok,
        "moved": not all(torch.equal(mask, before[name]) for name, mask in read_masks(model).items()),
        "weights": [float(parameter.detach().double().sum()) for parameter in model.parameters()],
    }


def refusal(do: Callable[[], Any]) -> str:
    """Why something cannot be done."""
    try:
        do()
    except ValueError as error:
        return str(error)
    return ""


def with_fsdp(early: bool) -> dict[str, Any]:
    """A plain loop under FSDP2 beside the same one in a single process.

    Args:
        early: Whether masks are asked for before the parameters are shared out. The optimizer then gets the new ones as
            accelerate gives them to it.
    """
    model, alone = prune_sample(), prune_sample()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    keeper = MaskKeeper(model, optimizer) if early else None
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for block in model.model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if keeper is None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        keeper = MaskKeeper(model, optimizer)
    else:
        optimizer.param_groups[0]["params"] = list(model.parameters())
    masked, sparsities = [], []
    reference = torch.optim.AdamW(alone.parameters(), lr=1e-2)
    with keep_masks(alone, reference):
        for step in range(STEPS):
            batch = torch.tensor([row["input_ids"] for row in make_rows()[4 * step : 4 * step + 4]])
            take_step(alone, reference, batch)
            take_step(model, optimizer, batch.chunk(distributed.get_world_size())[distributed.get_rank()])
            sparsities.append(keeper.sparsity())
            masked.append(moments_are_masked(keeper, optimizer))
    keeper.close()
    callbacks = (RigLCallback(), LISACallback(), GradualPruningCallback(MWandaConfig(criterion="magnitude"), []))
    refusals = [refusal(lambda each=each: each._keep(model, optimizer)) for each in callbacks]
    expected = dict(alone.named_parameters())
    apart = [(whole(tensor) - expected[name]).abs().max().item() for name, tensor in model.named_parameters()]
    return {
        "sharded": [len(own_part(tensor)) < len(tensor) for tensor in model.parameters()],
        "sparsity": sparsities,
        "masked": masked,
        "in memory": verify_sparsity(model).ok,
        "apart": max(apart),
        "refused": refusals,
    }


def take_step(model: PreTrainedModel, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> None:
    model(input_ids=batch, labels=batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def moments_are_masked(keeper: MaskKeeper, optimizer: torch.optim.Optimizer) -> bool:
    states = [(matrix, optimizer.state[matrix.parameter]) for matrix in keeper.matrices.values()]
    return not any(own_part(state["exp_avg"])[~matrix.kept()].any() for matrix, state in states)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    wanda = MWandaConfig(sparsity=0.7, criterion="wanda", samples_per_language=2, sequence_length=16)
    found = {
        "ddp": with_trainer(place, MWandaCallback()),
        "rigl": with_trainer(place, RigLCallback(alpha=0.3, interval=1)),
        "lisa": with_trainer(place, LISACallback(interval=1)),
        "gradual": with_trainer(place, GradualPruningCallback(wanda, make_text(rows=2), interval=1, stop=1.0)),
        "refused": refusal(lambda: with_trainer(place, LISACallback(), ddp_find_unused_parameters=False)),
        "fsdp": with_fsdp(early=False),
        "early": with_fsdp(early=True),
    }
    (place / f"rank-{distributed.get_rank()}.json").write_text(json.dumps(found), encoding="utf-8")
    distributed.destroy_process_group()
