"""Masked adapters on every pruned matrix, trained and merged."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from .adapter_merging import merge_preserving_masks
from .masked_adapters import mask_adapters
from .pruned_entries import read_masks

if TYPE_CHECKING:
    from .merge_report import MergeReport


def train_adapters(model: Any, rank: int, seed: int, train: Callable[[Any], None]) -> "tuple[Any, MergeReport]":
    """Puts masked rsLoRA adapters on the pruned matrices of a model, trains them, and merges them exactly.

    Args:
        model: A pruned model.
        rank: Rank of the adapters.
        seed: Seed of their first values.
        train: Trains the adapted model in place.

    Returns:
        The model with the adapters merged into it, and what the merge cost. After an error it is without adapters.
    """
    import peft

    torch.manual_seed(seed)
    names = sorted({name.rpartition(".")[2] for name in read_masks(model)})
    config = peft.LoraConfig(r=rank, lora_alpha=rank, use_rslora=True, target_modules=names, task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks for what transformers renames
        adapted = peft.get_peft_model(model, config)
    try:
        mask_adapters(adapted)
        train(adapted)
        return merge_preserving_masks(adapted)
    except BaseException:
        adapted.unload()
        raise
