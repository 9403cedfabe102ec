"""Which entries of a model's matrices are pruned, and must stay zero in training."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from ..modeling.blocks import find_blocks
from ..modeling.sharding import own_part
from ..record.matrices import matrix_attributes
from ..record.verification import match_names, sparsity_record, verify_sparsity
from ..utils import abridged

logger = logging.getLogger(__name__)

Masks = Mapping[str, Tensor]
"""Parameter name without `.weight` to a boolean tensor of the parameter's shape, True where an entry is pruned."""


def bare_model(model: nn.Module) -> Any:
    """The model inside the wrappers of DistributedDataParallel, accelerate and `torch.compile`."""
    return extract_model_from_parallel(model, keep_fp32_wrapper=True, keep_torch_compile=False)


def read_masks(model: nn.Module) -> dict[str, Tensor]:
    """Takes the masks of a pruned model from the zeros of the matrices that its record names.

    Args:
        model: The model, as it was loaded or pruned, perhaps wrapped. A process that holds a part of a matrix gets the
            mask of that part.

    Returns:
        Name of a matrix in this model, a parameter name without `.weight`, to a boolean tensor, True where an entry is
        pruned. The tensor has the shape of the parameter, which for fused experts and transposed layers is not
        `(out, in)`.

    Raises:
        ValueError: If the model has no record, or its matrices hold fewer zeros than the record says.
    """
    model = bare_model(model)
    record = sparsity_record(model)
    if record is None:
        raise ValueError(
            f"{type(model).__name__} has no sparsity record, so there are no masks to keep: prune the model first, "
            "load a checkpoint that was pruned with optimum-mwanda, or give the masks."
        )
    verification = verify_sparsity(model)
    if verification.lost or verification.missing or verification.reshaped:
        raise ValueError(
            f"The weights are not those that the sparsity record describes, so their zeros are not its masks. Load the "
            f"pruned checkpoint again, or give the masks. {verification}"
        )
    if verification.gained:
        logger.warning("Weights that are zero for another reason than pruning stay zero too. %s", verification)
    places = matrix_attributes(model)
    names = match_names(record.matrices, places)
    return {name: own_part(getattr(*places[name]).detach()) == 0 for name in names.values()}


def find_matrices(model: nn.Module, masks: Masks) -> dict[str, tuple[nn.Module, str]]:
    """Finds the matrices that masks are for.

    Args:
        model: The model, perhaps wrapped.
        masks: As `read_masks` gives them.

    Returns:
        Name of a matrix to the module, and the attribute of the module that holds it.

    Raises:
        TypeError: If masks are no mapping of names to tensors.
        ValueError: If there are no masks, a name is not that of a matrix, or a mask does not fit.
    """
    if not isinstance(masks, Mapping) or not all(isinstance(mask, Tensor) for mask in masks.values()):
        raise TypeError("masks is not a dict of names to tensors: give one, as read_masks(model) does.")
    places = matrix_attributes(bare_model(model))
    if not masks:
        raise ValueError("masks is empty: give a mask for every pruned matrix, as read_masks(model) does.")
    for name, pruned in masks.items():
        if name not in places:
            raise ValueError(
                f"masks names {name!r}, but the model's matrices are {abridged(map(repr, places))}: give names of "
                "parameters without '.weight'."
            )
        matrix = getattr(*places[name])
        if pruned.dtype != torch.bool or pruned.shape not in (matrix.shape, own_part(matrix).shape):
            raise ValueError(
                f"The mask of {name!r} is {pruned.dtype} of shape {tuple(pruned.shape)}: give torch.bool of shape "
                f"{tuple(matrix.shape)}, True where an entry is pruned."
            )
    return {name: places[name] for name in masks}


def recorded_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks of a model by their module paths: where the record says that they are, if it has one that says so."""
    record = sparsity_record(model)
    return find_blocks(model, None if record is None else record.settings.get("blocks"))
