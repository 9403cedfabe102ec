"""Reading a checkpoint back after it was written: what is in the files must be what was meant.

transformers loads the files into an empty model, as it will for every user, and each weight is compared with the model
in memory as soon as it is read. So one weight at a time is in memory a second time.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..modeling.architecture import load_arguments
from ..modeling.compiled import uncompiled
from ..modeling.offloading import offloaded_tensor
from ..modeling.pages import freed_at_once, release_pages
from ..modeling.quantized import forget_dequantization
from ..modeling.tensor_file import DTYPES
from ..utils import abridged
from .coded import decoded_view
from .conversion import check_can_be_saved
from .files import opened, weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_METHOD = "mwanda-read-back"
LEAST_SHARD = 2**26
"""Bytes of a weight file of an offloaded model, if its blocks are smaller."""
RELEASED_AFTER = 2**26
"""Bytes after which the memory of what was read is given back."""


def save_checked(
    model: "PreTrainedModel", folder: str | os.PathLike[str], *, max_shard_size: int | str | None = None
) -> None:
    """Saves a model as `save_pretrained` does, and reads the files back.

    Args:
        model: The model, compiled or not. If it was dequantized while it was loaded, it is saved as what it is now.
        folder: Folder to write to; created if it does not exist.
        max_shard_size: Most bytes per weight file. None: 50 GB, or for a model with offloaded weights, of which a file
            at a time is in memory, what its largest block takes.

    Raises:
        ValueError: As `check_saved`, or if this transformers cannot save the model because weights are offloaded.
    """
    model = uncompiled(model)
    forget_dequantization(model)
    check_can_be_saved(model)
    with warnings.catch_warnings():
        if max_shard_size is None:
            warnings.filterwarnings("ignore", "Attempting to save a model with offloaded modules")
        model.save_pretrained(folder, max_shard_size=max_shard_size or _shard_size(model))
    check_saved(model, folder)


def _shard_size(model: "PreTrainedModel") -> int | str:
    """The size of weight files for which there is room in memory."""
    if not any(parameter.is_meta for parameter in model.parameters()):
        return "50GB"
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    sizes = [sum(weight.nbytes for weight in member.parameters()) for members in lists for member in members]
    return max([LEAST_SHARD, *sizes])


def check_saved(model: "PreTrainedModel", folder: str | os.PathLike[str]) -> None:
    """Checks that a folder loads as a model: the same names, shapes, types and bits.

    Args:
        model: The model in memory, compiled or not.
        folder: Where it was saved.

    Raises:
        ValueError: If it does not, or cannot be loaded at all.
    """
    model = uncompiled(model)
    state = model.state_dict()
    wrong: list[str] = []

    def compare(name: str, found: Tensor) -> None:
        wanted = state.get(name)
        if wanted is not None and wanted.device.type == "meta":
            wanted = offloaded_tensor(model, name)
        # A model in several types is loaded in one, as far as its class does not ask for more.
        if wanted is None or not same_bits(wanted.detach().to(found.device, found.dtype), found):
            wrong.append(name)

    kind: Any = type(model)
    try:
        with freed_at_once():  # experts, once they are compared
            _, info = kind.from_pretrained(
                folder,
                dtype="auto",
                quantization_config=_Comparison(compare, Path(folder)),
                output_loading_info=True,
                **load_arguments(model),
            )
    except Exception as error:
        raise ValueError(f"{_BROKEN}it cannot be loaded again: {error}") from error
    types = {tensor.dtype for tensor in state.values()}
    strange = sorted(name for name, dtype in _types_in(Path(folder)) if dtype not in types)
    for problem, names in (
        ("not stored", info["missing_keys"]),
        ("stored under a name that the model does not have", info["unexpected_keys"]),
        ("stored in a type that the model does not have", strange),
        ("stored with another shape or other values", wrong),
    ):
        if names:
            raise ValueError(f"{_BROKEN}{len(names)} weights are {problem}: {abridged(map(repr, sorted(names)), 3)}.")


_BROKEN = "What was written is not the model in memory, and was not kept: "


def check_copied(source: Mapping[str, Any], target: Path) -> None:
    """Checks that a dense or compressed file holds the tensors that it was made from.

    Args:
        source: Name to tensor, or to something that gives it when it is indexed with `...`.
        target: The file that was written.

    Raises:
        ValueError: If names, shapes, types or bits differ.
    """
    with opened(target) as file:
        copies = decoded_view({name: file.get_slice(name) for name in file.keys()})  # noqa: SIM118
        wrong = copies.keys() ^ source.keys()
        wrong |= {name for name in copies.keys() & source.keys() if not same_bits(source[name][...], copies[name][...])}
    if wrong:
        raise ValueError(
            f"{target.name} does not hold what was written to it: {abridged(map(repr, sorted(wrong)), 3)}."
        )


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors on one device have the same shape, type and bits; NaN equals NaN, and -0 is not 0."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(_bytes(one), _bytes(other))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def _types_in(folder: Path) -> Iterable[tuple[str, torch.dtype | None]]:
    """Name and type of every tensor in a folder, from the headers of its files."""
    for path in weight_files(folder, compressed=False):
        with opened(path) as file:
            for name in file.keys():  # noqa: SIM118
                yield name, DTYPES.get(file.get_slice(name).get_dtype())


class _Comparison(QuantizationConfigMixin):
    """Asks `from_pretrained` to hand over every weight instead of keeping it.

    Args:
        compare: Called with the name of each weight and the weight, as it would be loaded.
        folder: Where the files are.
    """

    def __init__(self, compare: Callable[[str, Tensor], None], folder: Path) -> None:
        self.quant_method = _METHOD  # type: ignore[assignment]
        self.compare = compare
        self.folder = folder
        self.unreleased = 0  # bytes

    def __deepcopy__(self, _: Any) -> "_Comparison":
        return self

    def to_dict(self) -> dict[str, Any]:
        """What a config shows of it."""
        return {"quant_method": _METHOD}


class _Reader(HfQuantizer):
    """Takes each weight at the point where others quantize it."""

    quantization_config: _Comparison

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.pre_quantized = False

    def update_attn_implementation(self, config: Any) -> Any:
        """Removes itself from the config, so that nothing else is loaded differently."""
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        return config

    def update_tp_plan(self, config: Any) -> Any:
        """The first hook in transformers 5.0, which lacks the other one."""
        return self.update_attn_implementation(config)

    def preprocess_model(self, model: "PreTrainedModel", dtype: Any = None, **kwargs: Any) -> None:
        """Leaves the empty model unchanged."""

    def postprocess_model(self, model: "PreTrainedModel", **kwargs: Any) -> "PreTrainedModel":
        """Leaves the model, which is still empty."""
        return model

    def param_needs_quantization(self, model: "PreTrainedModel", param_name: str, **kwargs: Any) -> bool:
        """Every weight is read, and none is kept."""
        return True

    def get_quantize_ops(self) -> "_Operation":
        """What is done with a weight."""
        return _Operation(self.quantization_config)

    def is_serializable(self) -> bool:
        """Nothing of it is ever saved."""
        return False

    @property
    def is_trainable(self) -> bool:
        """The model is empty."""
        return False


class _Operation:
    def __init__(self, comparison: _Comparison) -> None:
        self._comparison = comparison  # there is an operation for every weight

    def convert(self, tensors: dict[str, Any], **_: Any) -> dict[str, Tensor]:
        """Compares the weights, and gives back empty ones of their shapes."""
        empty = {}
        for name, found in tensors.items():
            tensor = found[0] if isinstance(found, list) else found
            self._comparison.compare(name, tensor)
            self._comparison.unreleased += tensor.nbytes
            empty[name] = torch.empty_like(tensor, device="meta")
        if self._comparison.unreleased > RELEASED_AFTER:
            release_pages(self._comparison.folder)
            self._comparison.unreleased = 0
        return empty


if _METHOD not in AUTO_QUANTIZER_MAPPING:
    register_quantizer(_METHOD)(_Reader)
