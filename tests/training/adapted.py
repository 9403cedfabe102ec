"""Tiny pruned models with adapters of peft on them."""

import copy
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from optimum_mwanda import MWandaConfig, MWandaPruner
from tests.conftest import make_model

KINDS: dict[str, dict[str, Any]] = {"lora": {}, "dora": {"use_dora": True}, "rslora": {"use_rslora": True}}
TARGETS = {"llama": ["q_proj", "o_proj", "down_proj"], "gpt2": ["c_attn", "c_fc"]}
IDS = torch.randint(3, 90, (2, 16), generator=torch.Generator().manual_seed(0))


def prune(model: PreTrainedModel, sparsity: float = 0.5) -> PreTrainedModel:
    settings = {"criterion": "magnitude", "allocation": "uniform"}
    return MWandaPruner(MWandaConfig(sparsity=sparsity, **settings), progress=False).prune(model)


def adapt(family: str = "llama", model: PreTrainedModel | None = None, seed: int = 0, **changes: Any) -> Any:
    """An adapter as peft makes it, which changes nothing yet."""
    model = prune(make_model(family)) if model is None else model
    torch.manual_seed(seed)
    settings = {"r": 4, "target_modules": TARGETS[family], "fan_in_fan_out": family == "gpt2"} | changes
    return peft.get_peft_model(model, peft.LoraConfig(**settings))


def train(model: nn.Module, steps: int = 4, **autocast: Any) -> list[float]:
    """Trains for some steps on one batch, and gives the losses; the model is in evaluation mode after it."""
    model.train()
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=0.02)
    losses = []
    for _ in range(steps):
        with torch.autocast("cpu", **{"dtype": torch.bfloat16, "enabled": False, **autocast}):
            loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


@torch.no_grad()
def logits(model: nn.Module, **inputs: Any) -> Tensor:
    return model(input_ids=IDS, **inputs).logits


def merged_by_peft(model: Any) -> dict[str, Tensor]:
    """The weights that peft makes of a copy."""
    return copy.deepcopy(model).merge_and_unload(safe_merge=True).state_dict()
