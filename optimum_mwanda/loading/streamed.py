"""Loading a checkpoint with its blocks left on disk, and pruning it there."""

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..configuration import MWandaConfig
from ..data.tokenizer_loading import read_tokenizer
from ..modeling.blocks import find_stacks
from ..modeling.pages import release_files_of
from ..processes.group import current, sharing
from ..pruner import MWandaPruner
from ..pruning.sparsity_plan import SparsityPlan
from ..record.schema import SparsityRecord
from ..sharing.folder import save_folder
from ..sharing.model_card import describe
from ..storage.conversion import check_can_be_saved
from ..storage.journal import Journal
from ..storage.outputs import new_folder
from ..storage.scratch import PROGRESS
from .whole import empty_model, load_whole

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def prune_checkpoint(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: MWandaConfig | None = None,
    dataset: Any = None,
    tokenizer: PreTrainedTokenizerBase | str | None = None,
    *,
    dtype: Any = "auto",
    device: str | int | torch.device | None = None,
    activations: str | os.PathLike[str] = "cpu",
    compressed: bool = False,
    plan: SparsityPlan | None = None,
    overwrite: bool = False,
    restart: bool = False,
    progress: bool = True,
    **load_options: Any,
) -> SparsityRecord:
    """Prunes a checkpoint without holding more of it in memory than everything outside the blocks, and two blocks.

    On a CPU, it holds one block and at most half of the last one, which is written meanwhile.

    The result is what `MWandaPruner.prune` gives in memory, bit for bit. Every finished block is kept beside the output
    until all is done: if the run is stopped, even by `kill -9`, the same call goes on, and the output is the same.

    Several processes share the work if all of them call this while a process group is initialised: each reads the
    blocks itself, calibrates on a part of the text and keeps a part of every block. They need one file system for the
    output. In the end the first writes it, and the others wait.

    Args:
        model: Folder or repository of a dense checkpoint in safetensors files.
        output: Folder to write. It appears when it is complete.
        config: Settings; None for the defaults.
        dataset: As for `MWandaPruner.prune`.
        tokenizer: Tokenizer for texts, or its name or path; saved with the model. None: the one beside the model.
        dtype: Type to load the weights in; `"auto"` for that of the checkpoint.
        device: Where blocks run; None for the GPU that is set if there is one, the first by default, else the CPU.
        activations: Where hidden states are kept, as for `MWandaPruner`. On the CPU, "device" and "cpu" are the same.
        compressed: Whether to store only the non-zeros.
        plan: As for `MWandaPruner.prune`.
        overwrite: Whether to replace a folder at `output`.
        restart: Whether to begin anew if an interrupted run has left its progress.
        progress: Whether to show progress bars.
        **load_options: As for `from_pretrained`: `revision`, `trust_remote_code`, ...

    Returns:
        The record of what was pruned.

    Raises:
        FileExistsError: If there is a folder at `output` that is not empty.
        OtherRunError: If an interrupted run with other settings, data, model or versions has left its progress.
        OSError: If the output cannot be written, or another process is writing it.
        ValueError: If the settings, the data and the model do not fit together.
    """
    with sharing() as processes, ExitStack() as stack:
        # The first process owns the folder, and the others work in it.
        folder = processes.from_first(lambda: stack.enter_context(new_folder(output, overwrite, resumable=True)))
        journal = Journal(folder.with_name(PROGRESS))
        pruner = MWandaPruner(
            config, progress=progress, restore_on_failure=False, activations=activations, journal=journal
        )
        name = os.fspath(model)
        source: dict[str, Any] = {
            key: load_options[key] for key in ("revision", "trust_remote_code", "token") if key in load_options
        }
        found = AutoConfig.from_pretrained(name, **source)
        places: dict[str, Any] = {"blocks": pruner.config.blocks, "device": device}
        loaded, _ = load_streamed(name, found, offload_folder(folder), **places, dtype=dtype, **load_options)
        reader = _tokenizer(name, tokenizer, source)
        if restart and processes.is_first:
            journal.clear()
        pruner.prune(loaded, dataset, reader, plan)
        record: SparsityRecord = SparsityRecord.parse(loaded.config.mwanda_config)
        if processes.is_first:
            card = dataclasses.replace(describe(loaded, None, None), compressed=compressed)
            save_folder(loaded, folder, reader, card=card, compressed=compressed)
    return record


def offload_folder(folder: Path) -> Path:
    """Where this process keeps tensors that transformers stores in another form than the checkpoint.

    Args:
        folder: The folder that becomes the output.
    """
    return folder.with_name(f"offload-{current().rank}")


def load_streamed(
    name: str,
    config: "PreTrainedConfig",
    folder: Path,
    *,
    blocks: str | Sequence[str] | None = None,
    device: str | int | torch.device | None = None,
    **options: Any,
) -> tuple[PreTrainedModel, list[str]]:
    """Loads a checkpoint whole, as `load_whole` does, but leaves its blocks on disk.

    Args:
        name: Folder or repository.
        config: Its config.
        folder: For blocks that are stored in another form than the checkpoint, such as fused experts.
        blocks: Module paths of the lists of blocks, if they are not found.
        device: Where blocks run; None for the GPU that is set if there is one, the first by default, else the CPU.
        **options: As for `load_whole`.

    Raises:
        ValueError: As `load_whole`, or if this transformers could not save the model again.
    """
    places = blocks_on_disk(empty_model(config), default_device() if device is None else device, blocks)
    logger = logging.getLogger("accelerate.big_modeling")
    logger.addFilter(_is_news)
    try:
        model, unused = load_whole(name, config, device_map=places, offload_folder=str(folder), **options)
    finally:
        logger.removeFilter(_is_news)
    release_files_of(model.parameters())  # what was read of files while experts were converted
    check_can_be_saved(model)  # now, and not when everything is pruned
    return model, unused


def default_device() -> int | str:
    """Where blocks run unless the user says so: on the GPU that is set, the first one by default, if there is any."""
    return torch.cuda.current_device() if torch.cuda.is_available() else "cpu"


def _is_news(record: logging.LogRecord) -> bool:
    """Whether accelerate logs something else than that weights are where they are meant to be."""
    return "on the meta device because they were offloaded" not in record.getMessage()


def _tokenizer(
    name: str, tokenizer: PreTrainedTokenizerBase | str | None, source: Mapping[str, Any]
) -> PreTrainedTokenizerBase | None:
    """The tokenizer that was given, or the one beside the model if it has one."""
    if tokenizer is None:
        try:
            return read_tokenizer(name, **source)
        except Exception:  # the dataset may hold token ids; if it does not, the pruner says that there is none
            return None
    return read_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer


def blocks_on_disk(model: nn.Module, device: Any, path: str | Sequence[str] | None = None) -> dict[str, Any]:
    """A device map that leaves the blocks of a model on disk and has everything else on one device."""
    lists = {next(iter(stack)).rpartition(".")[0] for stack in find_stacks(model, path)}
    places: dict[str, Any] = dict.fromkeys(sorted(lists), "disk")

    def add(module: nn.Module, prefix: str) -> None:
        for name, child in module.named_children():
            path = f"{prefix}{name}"
            if any(each.startswith(f"{path}.") for each in lists):
                add(child, f"{path}.")
            elif path not in lists:
                places[path] = device
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        places.update({f"{prefix}{name}": device for name, _ in own})

    add(model, "")
    return places
