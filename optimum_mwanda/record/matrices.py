"""The matrices of a checkpoint or a loaded model: their shapes, and the zeros in them."""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..modeling.counting import count_zeros
from ..modeling.offloading import offloaded
from ..modeling.weights import PrunableWeight
from ..storage.coded import CODE, FORM, decoded_view
from ..storage.conversion import parameter_names
from ..storage.files import is_compressed, opened, read_config, weight_files
from .parts import RecordedMatrix

MAX_NAME = 1024


@dataclasses.dataclass(frozen=True)
class StoredMatrix:
    """A parameter that may hold pruned matrices, in one part or in several (on disk, often one per expert).

    Attributes:
        shapes: Shape of every part.
        count_zeros: Reads the parts and counts.
    """

    shapes: tuple[tuple[int, ...], ...]
    count_zeros: Callable[[], int]

    @property
    def numel(self) -> int:
        """Number of weights."""
        return sum(map(math.prod, self.shapes))

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it can be the matrix that a record describes.

        Args:
            shape: `(out, in)` or `(experts, out, in)`; both may be stored transposed, and experts stacked or merged.
        """
        if len(shape) == 2 and len(self.shapes) == 1:
            return self.shapes[0] in (shape, shape[::-1])
        return self.numel == math.prod(shape)


def count_matrices(weights: Iterable[PrunableWeight]) -> list[RecordedMatrix]:
    """Counts the zeros of the parameters of some prunable weights in memory, listed as by `name_matrices`.

    Raises:
        ValueError: If the values of a weight are nowhere.
    """
    weights = list(weights)
    holders = {weight.stored: weight for weight in weights}
    return name_matrices(
        weights, {name: _count_loaded(name, w.module, w.holder, w.parameter) for name, w in holders.items()}
    )


def name_matrices(weights: Iterable[PrunableWeight], zeros: Mapping[str, int]) -> list[RecordedMatrix]:
    """Lists the parameters of some prunable weights; the matrices of all experts in a parameter are one entry.

    Args:
        weights: Weights of a model, any number per parameter.
        zeros: `PrunableWeight.stored` to the zeros in it.

    Returns:
        One entry per parameter, in the order of the weights.
    """
    found: dict[str, RecordedMatrix] = {}
    for weight in weights:
        # Without `.weight`, as the path of a module stands for its weight.
        name = _matrix_name(weight.stored)
        if name not in found:
            shape = (*weight.shape,) if weight.expert is None else (weight.experts, *weight.shape)
            found[name] = RecordedMatrix(name, weight.block, shape, zeros[weight.stored])
    return list(found.values())


def share_of_zeros(matrices: Sequence[RecordedMatrix]) -> float:
    """Zeros over entries of all matrices together."""
    return sum(matrix.zeros for matrix in matrices) / sum(matrix.numel for matrix in matrices)


def loaded_matrices(model: nn.Module) -> dict[str, StoredMatrix]:
    """Lists the parameters of a loaded model that have two or three dimensions.

    Layers that wrap a linear layer and show its weight as an attribute count too.

    Returns:
        Parameter name without `.weight` to matrix.
    """
    return {
        key: StoredMatrix((tuple(getattr(module, name).shape),), functools.partial(_count_attribute, key, module, name))
        for key, (module, name) in matrix_attributes(model).items()
    }


def matrix_attributes(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Where the matrices of `loaded_matrices` are kept.

    Returns:
        Parameter name without `.weight` to the module, and the attribute of the module that holds the matrix.
    """
    found = {}
    for path, module in model.named_modules(remove_duplicate=False):
        names = ["weight", *(name for name, _ in module.named_parameters(recurse=False, remove_duplicate=False))]
        for name in dict.fromkeys(names):
            tensor = getattr(module, name, None)
            if torch.is_tensor(tensor) and tensor.dim() in (2, 3):
                found[_matrix_name(f"{path}.{name}".lstrip("."))] = (module, name)
    return found


def _count_attribute(key: str, module: nn.Module, name: str) -> int:
    """Asks the layer again, so that a weight that it computes on demand is not kept."""
    return _count_loaded(key, module, getattr(module, name), name)


def _count_loaded(name: str, module: nn.Module, tensor: Tensor, parameter: str) -> int:
    """Counts the zeros of a tensor of a module, which accelerate may keep elsewhere."""
    if (found := offloaded(module).get(parameter)) is not None:
        tensor = found.value
    if tensor.device.type == "meta":
        raise ValueError(
            f"{name!r} has no values (meta device): load the whole model into memory to count its zeros, or give the "
            "folder where it is saved."
        )
    return count_zeros(tensor.detach())


def read_matrices(folder: Path, recorded: Collection[str] = ()) -> dict[str, StoredMatrix]:
    """Lists the matrices of a dense or compressed checkpoint from the headers of its files.

    Values are read when they are counted.

    Args:
        folder: Folder of the checkpoint.
        recorded: Names in its record. A model with custom code uses the names in its files, even if transformers
            would rename them for a model of that type: tensors stored under a recorded name are also listed under it.

    Returns:
        Parameter name as in a loaded model, without `.weight`, to matrix.

    Raises:
        FileNotFoundError: If the folder has no config, no safetensors weights, or lacks a shard.
        ValueError: If a file cannot be read, or a matrix is in two of them.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    paths: dict[str, Path] = {}
    for path in weight_files(folder, is_compressed(folder)):
        for key, shape in _shapes_in(path).items():
            if key in paths:
                raise ValueError(f"{folder} holds {key!r} in two files: delete the file that does not belong to it.")
            shapes[key], paths[key] = shape, path
    parts: dict[str, list[str]] = {}
    for key, parameter in parameter_names(read_config(folder), shapes).items():
        parts.setdefault(_matrix_name(parameter), []).append(key)
    for key in shapes:
        if _matrix_name(key) in recorded:
            parts.setdefault(_matrix_name(key), [key])
    return {
        name: StoredMatrix(
            tuple(shapes[key] for key in keys), functools.partial(_count_stored, {key: paths[key] for key in keys})
        )
        for name, keys in parts.items()
    }


def _matrix_name(parameter: str) -> str:
    return parameter.removesuffix(".weight")


def _shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    with opened(path) as file:
        tensors = decoded_view({key: file.get_slice(key) for key in file.keys()})  # noqa: SIM118
        shapes = {key: tuple(tensor.get_shape()) for key, tensor in tensors.items()}
    return {key: shape for key, shape in shapes.items() if len(shape) in (2, 3) and len(key) <= MAX_NAME}


def _count_stored(paths: dict[str, Path]) -> int:
    """Counts the zeros of some tensors; opens each file once, because a header can name thousands of experts."""
    zeros = 0
    for path in dict.fromkeys(paths.values()):
        with opened(path) as file:
            stored = set(file.keys())
            for key in (key for key, place in paths.items() if place == path):
                names = [name for name in (key, key + CODE, key + FORM) if name in stored]
                zeros += count_zeros(decoded_view({name: file.get_slice(name) for name in names})[key][...])
    return zeros
