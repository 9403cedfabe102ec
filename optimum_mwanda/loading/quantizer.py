"""How `from_pretrained` of transformers handles a pruning configuration and a compressed checkpoint.

Both come as a `quantization_config`, the extension point that transformers offers. Neither leaves a trace: the loaded
model is an ordinary dense one.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import modeling_utils
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.logging import is_progress_bar_enabled
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..configuration import MWandaConfig
from ..storage.coded import (
    CODE,
    COMPRESSED,
    FORM,
    FORMAT,
    CodedTensor,
    check_count,
    check_format,
    decoded_view,
    names_in,
)
from ..storage.conversion import parameter_names
from ..storage.files import COMPRESSED_INDEX_FILE, COMPRESSED_WEIGHTS_FILE, check_index
from .unused import note_unused

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_LOADER = "convert_and_load_state_dict_in_model"
_RESOLVER = "get_checkpoint_shard_files"


class _WhileLoading(HfQuantizer):
    """Works inside `from_pretrained` and is gone when that returns.

    A model with a quantizer refuses `.half()` and skips DeepSpeed's ZeRO-3 initialisation, and other tools refuse its
    config, so neither the model nor its config is ever marked.
    """

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        # The weights arrive as plain ones. False also makes transformers load one weight at a time.
        self.pre_quantized = False

    def update_attn_implementation(self, config: "PreTrainedConfig") -> "PreTrainedConfig":
        """Removes itself from the model config; this hook is the first to see the config."""
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        return config

    def update_tp_plan(self, config: "PreTrainedConfig") -> "PreTrainedConfig":
        """The first hook in transformers 5.0, which lacks the other one."""
        return self.update_attn_implementation(config)

    def preprocess_model(self, model: "PreTrainedModel", dtype: Any = None, **kwargs: Any) -> None:
        """Leaves the empty model unchanged."""

    def postprocess_model(self, model: "PreTrainedModel", **kwargs: Any) -> "PreTrainedModel":
        """Removes itself from the loaded model."""
        del model.hf_quantizer
        return model

    def is_serializable(self) -> bool:
        """Nothing is attached that could prevent saving."""
        return True

    @property
    def is_trainable(self) -> bool:
        """The model is an ordinary one."""
        return True


class PruneOnLoad(_WhileLoading):
    """Prunes a model at the end of `from_pretrained(..., quantization_config=MWandaConfig(dataset=...))`."""

    quantization_config: MWandaConfig  # type: ignore[assignment]

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Asks for the dataset before anything is downloaded.

        Raises:
            ValueError: If the settings need calibration data and there is none.
        """
        config = self.quantization_config
        if getattr(config, "dataset", None) is None and config.needs_statistics:
            raise ValueError(
                f"criterion={config.criterion!r} with allocation={config.allocation!r} needs calibration data: pass "
                "quantization_config=MWandaConfig(dataset=..., tokenizer=...), or settings without data "
                "(criterion='magnitude', allocation='uniform')."
            )

    def postprocess_model(self, model: "PreTrainedModel", **kwargs: Any) -> "PreTrainedModel":
        """Prunes the loaded model in place."""
        from ..pruner import MWandaPruner

        super().postprocess_model(model, **kwargs)
        config = self.quantization_config
        dataset, tokenizer = getattr(config, "dataset", None), getattr(config, "tokenizer", None)
        pruner = MWandaPruner(
            dataclasses.replace(config, dataset=None, tokenizer=None), progress=is_progress_bar_enabled()
        )
        return pruner.prune(model, dataset, tokenizer)


class CompressedConfig(QuantizationConfigMixin):
    """The `quantization_config` of a compressed checkpoint; `compress` writes it.

    Args:
        format: Version of the layout.
        sharded: Whether the weights are in several files.
        tensors: Number of tensors in all files; a coded one counts once. None if unknown.
    """

    def __init__(self, format: int = FORMAT, sharded: bool = False, tensors: int | None = None, **_: Any) -> None:
        check_format(format)
        self.quant_method = COMPRESSED  # type: ignore[assignment]
        self.format = format
        self.sharded = bool(sharded)
        self.tensors = tensors


class CompressedLoader(_WhileLoading):
    """Leads `from_pretrained` to the files of a compressed checkpoint."""

    quantization_config: CompressedConfig

    def update_attn_implementation(self, config: "PreTrainedConfig") -> "PreTrainedConfig":
        """Names the weight files, which plain transformers must not find."""
        config.transformers_weights = (
            COMPRESSED_INDEX_FILE if self.quantization_config.sharded else COMPRESSED_WEIGHTS_FILE
        )
        return super().update_attn_implementation(config)

    def preprocess_model(self, model: "PreTrainedModel", dtype: Any = None, **kwargs: Any) -> None:
        """Removes that name again, which other checkpoints of this model do not share, and checks the files.

        Raises:
            ValueError: If a file cannot be read, tensors are missing, or one is there twice.
        """
        if hasattr(model.config, "transformers_weights"):
            del model.config.transformers_weights
        stored = _names_in(kwargs.get("checkpoint_files") or ())
        # transformers fills missing weights with random numbers, as it must for a new head.
        check_count(self.quantization_config.tensors, stored, lambda: _without_tensor(model, stored))


def _names_in(files: Iterable[str]) -> set[str]:
    """Names of the tensors in the files of a compressed checkpoint, from their headers."""
    # A model class may add its own files to those of the checkpoint.
    ending = COMPRESSED_WEIGHTS_FILE.removeprefix("model")
    return names_in(Path(path) for path in files if path.endswith(ending))


def _without_tensor(model: "PreTrainedModel", stored: set[str]) -> list[str]:
    """Weights of a model for which nothing is stored, with or without the base model's prefix."""
    stored = stored.union(parameter_names(model.config.to_dict(), stored).values())
    prefix = f"{model.base_model_prefix}."
    tied = getattr(model, "all_tied_weights_keys", {})
    return [
        name
        for name in model.state_dict()
        if name not in tied and stored.isdisjoint((name, prefix + name, name.removeprefix(prefix)))
    ]


def _room(model: "PreTrainedModel", exact: bool) -> Callable[[str], int]:
    """Gives the number of weights that the model has room for under a name in its checkpoint.

    Args:
        model: The model.
        exact: Whether a tensor must not be larger than the model's own tensor of that name.
    """
    sizes: dict[str, int] = {name: tensor.numel() for name, tensor in model.state_dict().items()}
    prefix = f"{model.base_model_prefix}."
    everything = sum(sizes.values())

    def room(name: str) -> int:
        own = (sizes.get(key) for key in (name, prefix + name, name.removeprefix(prefix)))
        # Experts become parts of a larger weight, and fused weights are split: the size of the model bounds these.
        return next((size for size in own if exact and size is not None), everything)

    return room


def _decode_first(load: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps the function that loads every checkpoint of transformers into a model."""

    @functools.wraps(load)
    def load_decoded(model: "PreTrainedModel", state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if any(name.endswith((CODE, FORM)) for name in state_dict):
            resized = getattr(kwargs.get("load_config"), "ignore_mismatched_sizes", False)
            state_dict = decoded_view(state_dict, _room(model, exact=not resized))
            # Weights offloaded to disk stay in the file of the checkpoint, unless the index does not list them.
            offloaded = kwargs.get("disk_offload_index") or {}
            for name, entry in list(offloaded.items()):
                if isinstance(state_dict.get(entry.get("weight_name")), CodedTensor):
                    del offloaded[name]
        result = load(model, state_dict, *args, **kwargs)
        note_unused(result, state_dict)
        return result

    return load_decoded


def _check_index_first(resolve: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps the function that finds or downloads the files in an index, because it accepts any name and type."""

    @functools.wraps(resolve)
    def resolve_checked(name_or_path: Any, index_filename: Any, *args: Any, **kwargs: Any) -> Any:
        if os.path.basename(str(index_filename)) == COMPRESSED_INDEX_FILE and os.path.isfile(index_filename):
            check_index(Path(index_filename))
        return resolve(name_or_path, index_filename, *args, **kwargs)

    return resolve_checked


def register() -> None:
    """Registers the above with transformers, once."""
    if COMPRESSED in AUTO_QUANTIZATION_CONFIG_MAPPING:
        return
    # First, because transformers does not promise these functions: without them, nothing must be registered.
    load, resolve = getattr(modeling_utils, _LOADER), getattr(modeling_utils, _RESOLVER)
    setattr(modeling_utils, _LOADER, _decode_first(load))
    setattr(modeling_utils, _RESOLVER, _check_index_first(resolve))
    register_quantizer(MWandaConfig.quant_method)(PruneOnLoad)
    register_quantizer(COMPRESSED)(CompressedLoader)
    register_quantization_config(COMPRESSED)(CompressedConfig)
