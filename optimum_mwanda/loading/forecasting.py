"""Finding out what pruning a checkpoint will take, before its weights are read."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoConfig

from ..configuration import MWandaConfig
from ..data.chunks import build_chunks, samples_of
from ..modeling.blocks import find_blocks
from ..modeling.positions import resolve_sequence_length
from ..modeling.quantized import DEQUANTIZABLE, plain_dtype
from ..modeling.weights import Weights, find_weights, flat
from ..pruning.checks import check_pattern
from ..pruning.planning import to_calibrate
from ..storage.coded import COMPRESSED
from ..storage.read_back import LEAST_SHARD
from ..utils import portable_name
from ..walking.deciding import weighs_blocks
from ..walking.store import check_activations
from .footprint import FRAGMENTS, LIBRARIES, Footprint, Text
from .forecast import ModeForecast, PruningForecast
from .headers import StoredTensor, dtype_of, read_headers
from .probe import Clock, time_block
from .streamed import default_device
from .whole import empty_model, stored_method

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class EmptyCheckpoint:
    """A checkpoint of which nothing but the config and the headers were read, and settings that fit it.

    Attributes:
        name: Folder or repository.
        config: Its config.
        settings: The settings.
        headers: What is stored in its files; empty if they have no headers.
        model: The model without values (meta device), in the type in which it is pruned.
        blocks: Its blocks.
        weights: What would be pruned in them.
    """

    name: str
    config: "PreTrainedConfig"
    settings: MWandaConfig
    headers: Mapping[str, StoredTensor]
    model: "PreTrainedModel"
    blocks: dict[str, nn.Module]
    weights: Weights


def plan_pruning(
    model: str | os.PathLike[str],
    config: MWandaConfig | None = None,
    dataset: Any = None,
    tokenizer: "PreTrainedTokenizerBase | str | None" = None,
    *,
    languages: int | None = None,
    dtype: Any = "auto",
    device: str | int | torch.device | None = None,
    activations: str | os.PathLike[str] = "cpu",
    compressed: bool = False,
    timed: bool = True,
    clock: Clock = time.perf_counter,
    **load_options: Any,
) -> PruningForecast:
    """Says what pruning a checkpoint would take, from its config and the headers of its files.

    No weights are read, and none are downloaded. To estimate the time, one block with random weights is pruned.

    Args:
        model: Folder or repository of a dense checkpoint.
        config: Settings; None for the defaults.
        dataset: As for `MWandaPruner.prune`; read as then, so that its tokens are known. None: full samples of every
            language are assumed.
        tokenizer: As for `MWandaPruner.prune`.
        languages: Number of languages where there is no dataset. None: those in the settings, or one.
        dtype: Type to load the weights in; `"auto"` for that of the checkpoint.
        device: Where blocks run; None for the first GPU if there is one, else the CPU.
        activations: Where hidden states would be kept, as for `prune_checkpoint`.
        compressed: Whether only the non-zeros would be stored.
        timed: Whether to estimate the time.
        clock: Gives seconds.
        **load_options: As for `from_pretrained`: `revision`, `trust_remote_code`, `token`, `use_safetensors`.

    Returns:
        The forecast.

    Raises:
        FileNotFoundError: If there is no such folder, or it holds no safetensors files.
        OSError: If the config or the headers cannot be read.
        ValueError: If the settings do not fit the model, or the model is quantized in a way that cannot be undone.
    """
    checkpoint = open_empty(model, config, dtype, **load_options)
    return foresee(
        checkpoint,
        dataset,
        tokenizer,
        languages=languages,
        device=device,
        activations=activations,
        compressed=compressed,
        timed=timed,
        clock=clock,
    )


def open_empty(
    model: str | os.PathLike[str],
    config: MWandaConfig | None = None,
    dtype: Any = "auto",
    *,
    use_safetensors: bool | None = True,
    **load_options: Any,
) -> EmptyCheckpoint:
    """Reads the config and the headers of a checkpoint, and checks that settings fit it.

    Args:
        model: As for `plan_pruning`.
        config: As for `plan_pruning`.
        dtype: As for `plan_pruning`.
        use_safetensors: None: a checkpoint may have files without headers.
        **load_options: As for `plan_pruning`.

    Raises:
        FileNotFoundError: As `plan_pruning`.
        OSError: As `plan_pruning`.
        ValueError: As `plan_pruning`.
    """
    settings, name = config or MWandaConfig(), os.fspath(model)
    found = AutoConfig.from_pretrained(name, **load_options)
    method = stored_method(found)
    if method not in ("", COMPRESSED, *DEQUANTIZABLE):
        raise ValueError(f"{name!r} is quantized by {method}: prune the dense model that it was made from.")
    headers: Mapping[str, StoredTensor] = {}
    try:
        headers = read_headers(name, **{key: load_options[key] for key in load_options if key != "trust_remote_code"})
    except FileNotFoundError:
        if use_safetensors is not None:
            raise
    empty = empty_model(found, _dtype(found, headers, dtype))
    blocks = find_blocks(empty, settings.blocks)
    weights = find_weights(blocks, settings.include, settings.exclude)
    check_pattern(weights, settings)
    return EmptyCheckpoint(name, found, settings, headers, empty, blocks, weights)


def foresee(
    checkpoint: EmptyCheckpoint,
    dataset: Any = None,
    tokenizer: "PreTrainedTokenizerBase | str | None" = None,
    *,
    languages: int | None = None,
    device: str | int | torch.device | None = None,
    activations: str | os.PathLike[str] = "cpu",
    compressed: bool = False,
    timed: bool = True,
    clock: Clock = time.perf_counter,
) -> PruningForecast:
    """Reads the text, if there is any, times one block, and adds up what pruning takes; as `plan_pruning`."""
    check_activations(activations)
    model, settings, weights = checkpoint.model, checkpoint.settings, checkpoint.weights
    place = torch.device(default_device() if device is None else device)
    length = resolve_sequence_length(settings.sequence_length, model)
    text = _text(checkpoint, length, dataset, tokenizer, languages)
    sizes = Footprint(model, checkpoint.blocks, weights, settings, text, _converted(checkpoint))
    seconds: dict[str, float | None] = {"memory": None, "stream": None}
    untimed = ""
    if timed:
        try:
            spent = time_block(checkpoint.config, settings, place, model.dtype, length, clock)
        except Exception as error:  # a model may need more than one block to run
            untimed = f"one block of {type(model).__name__} does not run by itself ({type(error).__name__}: {error})."
        else:
            batches = text.tokens / text.per_batch
            is_looked_at = bool(to_calibrate(weights, settings)) or weighs_blocks(settings)
            read = sum(sizes.blocks.values()) * (2 if is_looked_at else 1)
            streamed = spent.streamed(batches, read, sizes.journal(), settings.works_blockwise or not is_looked_at)
            seconds = {"memory": spent.seconds(batches), "stream": streamed}
    return PruningForecast(
        model=portable_name(checkpoint.name),
        architecture=type(model).__name__,
        dtype=str(model.dtype).removeprefix("torch."),
        stored_bytes=sum(tensor.nbytes for tensor in checkpoint.headers.values()) or None,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        blocks={block: (len(group), sum(weight.numel for weight in group)) for block, group in weights.items()},
        left_dense=_left_dense(checkpoint),
        sparsity=settings.target_sparsity,
        languages=text.languages if text.tokens else 0,
        tokens=text.tokens,
        passes=_passes(weights, settings),
        device=str(place),
        untimed=untimed,
        unstreamed=_why_unstreamed(settings),
        **_modes(checkpoint, sizes, place, activations, compressed, seconds),
    )


def _why_unstreamed(settings: MWandaConfig) -> str:
    if settings.sensitivity != "none":
        return "sensitivities take a backward pass through all blocks."
    if settings.calibration_tolerance is not None and settings.needs_statistics:
        return "how much text is enough is seen while the whole model reads it."
    if settings.finds_settings:
        return "some settings are found by trying, for which the whole model must be in memory."
    return ""


def _modes(
    checkpoint: EmptyCheckpoint,
    sizes: Footprint,
    place: torch.device,
    activations: str | os.PathLike[str],
    compressed: bool,
    seconds: Mapping[str, float | None],
) -> dict[str, ModeForecast]:
    settings, on_cpu = checkpoint.settings, place.type == "cpu"
    in_file = activations not in ("device", "cpu")
    is_beside = not in_file and (on_cpu or activations == "device")  # hidden states are where blocks run
    hidden = {"memory": sizes.hidden_states * settings.works_blockwise, "stream": sizes.hidden_states}
    # A compressed checkpoint is made of a dense one, which goes when it is complete.
    output = int(sizes.model * (2 - settings.target_sparsity)) if compressed else sizes.model
    disk = {
        "memory": output + hidden["memory"] * in_file,
        "stream": output + hidden["stream"] * in_file + sizes.journal() + sum(_converted(checkpoint)),
    }
    peaks = {
        "memory": sizes.in_memory(hidden["memory"] * is_beside, is_mapped=on_cpu),
        "stream": sizes.streamed(hidden["stream"] * is_beside, is_mapped=on_cpu),
    }
    # Beside a GPU, the machine holds masks, or what is on the way between the disk and the GPU, or is converted there.
    shard = max(LEAST_SHARD, *sizes.blocks.values())
    machine = {"memory": shard + sizes.masks, "stream": max(shard + sizes.pair(on_cpu), sizes.beside_device())}
    found = {}
    for mode, peak in peaks.items():
        elsewhere = machine[mode] + hidden[mode] * (not in_file and not is_beside)
        memory, device = (peak, None) if on_cpu else (elsewhere, peak)
        kept = FRAGMENTS if mode == "memory" else 0  # with blocks on disk, what is freed is given back at once
        found[mode] = ModeForecast(LIBRARIES[mode] + kept + memory, device, disk[mode], seconds[mode])
    return found


def _dtype(config: Any, headers: Mapping[str, StoredTensor], wanted: Any) -> torch.dtype:
    """The type that the weights will have in memory."""
    if stored_method(config) in DEQUANTIZABLE:
        found: torch.dtype = plain_dtype(config.dtype if wanted == "auto" else wanted)
        return found
    if wanted == "auto":
        wanted = getattr(config, "dtype", None) or dtype_of(headers) or torch.float32
    result: torch.dtype = getattr(torch, wanted) if isinstance(wanted, str) else wanted
    return result


def _text(checkpoint: EmptyCheckpoint, length: int, dataset: Any, tokenizer: Any, languages: int | None) -> Text:
    """How much text there is, or would be if every language filled its samples."""
    settings, model = checkpoint.settings, checkpoint.model
    sides = 2 if model.config.is_encoder_decoder else 1
    per_batch = settings.batch_size * length * sides
    if not settings.needs_statistics:
        return Text(0, per_batch, 0)
    if dataset is not None:
        tokens = build_chunks(dataset, settings, model, tokenizer).tokens
        return Text(sum(tokens.values()), per_batch, len(tokens))
    names = ["others"] * languages if languages else settings.languages or ["others"]
    samples = sum(samples_of(settings, name) for name in names)
    return Text(samples * length * sides, per_batch, len(names))


def _passes(weights: Weights, settings: MWandaConfig) -> dict[str, int]:
    """What the whole text runs through the blocks for."""
    passes = {}
    if to_calibrate(weights, settings):
        passes["statistics of the dense model"] = 1
    if settings.sensitivity != "none":
        passes["sensitivities of the dense model, forward twice and back"] = 1
    if settings.works_blockwise:
        by_group = settings.calibration == "sequential" and settings.needs_grams
        passes["inputs of each " + ("group of matrices that read the same" if by_group else "block")] = 1
        if settings.calibration == "sequential":
            passes["outputs of each pruned block"] = 1
        if settings.trains_blocks:
            passes["outputs of each dense block"] = 1
            if settings.reconstruction_blocks > 1:
                passes["outputs of each block before it is trained with the next"] = 1
            trainings = settings.trains_masks + settings.trains_values
            passes["training of each block, forward and back"] = trainings * settings.reconstruction_epochs
    if settings.finds_weights:  # scores need no more text than once for all rounds
        again = sum(passes.values()) * (1 + settings.minimax_rounds) if settings.works_blockwise else 1
        passes["finding the weights of languages, which the time leaves out"] = again
    if settings.finds_regularisation:
        passes["choosing the regularisation, which the time leaves out"] = 1
    return passes


def _left_dense(checkpoint: EmptyCheckpoint) -> dict[str, int]:
    """Why parameters are not pruned."""
    inside = {id(each): each.numel() for block in checkpoint.blocks.values() for each in block.parameters()}
    outside = sum(each.numel() for each in checkpoint.model.parameters() if id(each) not in inside)
    pruned = sum(weight.numel for weight in flat(checkpoint.weights))
    prunable = pruned
    if checkpoint.settings.include is not None or checkpoint.settings.exclude:
        with contextlib.suppress(ValueError):  # what is excluded cannot be pruned at all
            prunable = sum(weight.numel for weight in flat(find_weights(checkpoint.blocks)))
    reasons = {
        "outside the blocks: embeddings, head, final norm": outside,
        "left out by include or exclude": prunable - pruned,
        "in the blocks, but never pruned: norms, biases, routers": sum(inside.values()) - prunable,
    }
    return {reason: count for reason, count in reasons.items() if count}


def _converted(checkpoint: EmptyCheckpoint) -> list[int]:
    """Bytes of each tensor of blocks that runs in another form than the files hold, such as fused experts."""
    if not checkpoint.headers:
        return []
    # Files of a model with and without a head differ in the beginnings of names.
    stored = {name[place:] for name in checkpoint.headers for place in _starts(name)}
    return [
        parameter.nbytes
        for block in checkpoint.blocks.values()
        for name, parameter in block.named_parameters()
        if name not in stored
    ]


def _starts(name: str) -> list[int]:
    return [0, *(place + 1 for place, sign in enumerate(name) if sign == ".")]
