"""Loading a checkpoint whole: with its own class, as plain weights, and with nothing left out unnoticed."""

import contextlib
import copy
import logging
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import PreTrainedModel

from ..modeling.architecture import NO_POOLER, auto_class, lacks_only_pooler
from ..modeling.quantized import DEQUANTIZABLE, forget_dequantization, method_of, plain_dtype
from ..utils import abridged
from .fp8_blocks import exact_blocks
from .unused import listening

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def model_class(config: "PreTrainedConfig") -> Any:
    """The class that a config names, or an auto class that will find it.

    Args:
        config: Config of a checkpoint.
    """
    architecture = (config.architectures or [""])[0]
    if type(config).__module__.startswith("transformers_modules"):  # custom code, which the user has allowed
        for auto, reference in (getattr(config, "auto_map", None) or {}).items():
            if str(reference).rpartition(".")[2] == architecture and auto.startswith("AutoModel"):
                return getattr(transformers, auto)
    found = getattr(transformers, architecture, None) if architecture.isidentifier() else None
    if isinstance(found, type) and issubclass(found, PreTrainedModel):
        kind = found.config_class
        if isinstance(kind, type) and isinstance(config, kind):
            return found
    return getattr(transformers, auto_class(architecture, config.is_encoder_decoder))


def empty_model(config: "PreTrainedConfig", dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A model as its config describes it, with the class that the config names and without values (meta device).

    Args:
        config: Config of a checkpoint; not changed.
        dtype: Type of the weights. None: any.
    """
    kind = model_class(config)
    make = getattr(kind, "from_config", kind)
    with torch.device("meta"):
        model: Any = make(copy.deepcopy(config))
    found: PreTrainedModel = model if dtype is None else model.to(dtype)
    return found


def stored_method(config: "PreTrainedConfig") -> str:
    """How the weights of a checkpoint are quantized, by its `quant_method`; empty if they are not."""
    found = _quantization(config)
    return "" if found is None else method_of(found)


def _quantization(config: Any) -> Any:
    return next((found for part in _parts(config) if (found := getattr(part, "quantization_config", None))), None)


def _parts(config: Any) -> tuple[Any, ...]:
    text = config.get_text_config()
    return (config,) if text is config else (config, text)


def load_whole(
    name: str, config: "PreTrainedConfig", *, keep_all: bool = True, dtype: Any = "auto", **options: Any
) -> tuple[PreTrainedModel, list[str]]:
    """Loads a checkpoint with the class that its config names, and dequantizes it if it is stored in 8 or 4 bits.

    Args:
        name: Folder or repository.
        config: Its config; changed if it is quantized.
        keep_all: Whether tensors that the class has no place for are an error.
        dtype: As for `from_pretrained`. `"auto"` is bfloat16 for a quantized checkpoint that names no other type.
        **options: As for `from_pretrained`.

    Returns:
        The model, and the names of the tensors in its files that it has no place for.

    Raises:
        ValueError: If weights of the model are missing in the files, or `keep_all` is set and they hold more than it
            has a place for.
    """
    wanted = None
    if stored_method(config) in DEQUANTIZABLE:
        _dequantize(config)
        # transformers dequantizes to bfloat16, whatever type it is asked for.
        wanted = plain_dtype(config.dtype if dtype == "auto" else dtype)
        dtype = torch.bfloat16
    architecture = (config.architectures or [""])[0]
    kind = model_class(config)
    options = {**options, "config": config, "dtype": dtype, "output_loading_info": True}
    with exact_blocks(), listening() as unused, _reports_held() as reports, _shapes_explained(name):
        model, info = kind.from_pretrained(name, **options)
        if lacks_only_pooler(model, info["missing_keys"]):
            reports.clear()  # they say that the pooler has random weights, but now there is none
            model, info = kind.from_pretrained(name, **options, **NO_POOLER)
    forget_dequantization(model)
    if wanted not in (None, dtype):
        _cast(model, dtype, wanted)
    # transformers replaces missing weights with random ones and a warning.
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"The files of {name!r} lack {len(missing)} weights of a {type(model).__name__}, such as {missing[0]!r}: "
            f"they are incomplete, or belong to another kind of model (config.json: {architecture!r})."
        )
    if keep_all and unused:
        raise ValueError(
            f"The files of {name!r} hold {len(unused)} weights that a {type(model).__name__} has no place for and that "
            f"would be lost: {abridged(map(repr, sorted(unused)), 3)}. Set `architectures` in config.json to a class "
            "that has them, or give --drop-unused to leave them out."
        )
    return model, sorted(unused)


@contextlib.contextmanager
def _reports_held() -> Iterator[list[logging.LogRecord]]:
    """Holds what transformers logs about missing and unused weights back until the end of the block."""
    logger = logging.getLogger("transformers.modeling_utils")
    held: list[logging.LogRecord] = []

    def hold(record: logging.LogRecord) -> bool:
        is_report = "LOAD REPORT" in record.getMessage()
        if is_report:
            held.append(record)
        return not is_report

    logger.addFilter(hold)
    try:
        yield held
    finally:
        logger.removeFilter(hold)
        for record in held:
            logger.handle(record)


@contextlib.contextmanager
def _shapes_explained(name: str) -> Iterator[None]:
    """Inside the block, weights of other shapes are an error in words that fit who gave a folder, and no arguments."""
    try:
        yield
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(
            f"The files of {name!r} hold weights of other shapes than its config.json asks for, which are listed "
            "above: they belong to different models."
        ) from error


def _cast(model: PreTrainedModel, found: torch.dtype, wanted: torch.dtype) -> None:
    """Changes one type of weights; what a class keeps in float32 is in float32, as `from_pretrained` would load it."""
    patterns = (getattr(model, "_keep_in_fp32_modules", None) or ()) if wanted == torch.float16 else ()
    kept = [re.compile(pattern.replace("*", ".*")) for pattern in patterns]
    for name, parameter in model.named_parameters():
        if parameter.dtype == found:
            is_kept = any(pattern.search(name) for pattern in kept)
            parameter.data = parameter.data.to(torch.float32 if is_kept else wanted)
    model.config.dtype = wanted


def _dequantize(config: Any) -> None:
    """Asks for plain weights, in the place where transformers removes the request once it is done."""
    found = _quantization(config)
    values = dict(found) if isinstance(found, dict) else found.to_dict()
    for part in _parts(config):
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config
    config.quantization_config = {**values, "dequantize": True}
