"""Says in the record of a model how it was trained after its pruning."""

import dataclasses
from typing import TYPE_CHECKING

from ..version import __version__
from .attachment import attach_record, take_records
from .fields import MAX_TRAININGS
from .matrices import loaded_matrices, share_of_zeros
from .schema import RECORD_KEY, SparsityRecord
from .verification import match_names, sparsity_record

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def begin_training(model: "PreTrainedModel", recipe: str, steps: int = 0) -> None:
    """Writes into the record of a model that it is being trained; without a record nothing is written.

    Args:
        model: A pruned model.
        recipe: What is done, in a word or two.
        steps: Optimizer steps already done. If the record ends with this recipe and this step, that training goes on.
    """
    record = sparsity_record(model)
    if record is None:
        return
    document = record.to_dict()
    trainings = document.setdefault("training", [])
    if trainings and trainings[-1]["steps"] == 0:  # it ended by an error before its first step
        trainings.pop()
    last = record.training[-1] if record.training else None
    if not steps or last is None or (last.recipe, last.steps) != (recipe, steps):
        trainings.append({"recipe": recipe, "steps": steps, "library_version": __version__})
    document["training"] = trainings[-MAX_TRAININGS:]
    attach_record(model, SparsityRecord.parse(document))


def count_steps(model: "PreTrainedModel", steps: int) -> None:
    """Sets the optimizer steps of the training that `begin_training` wrote down."""
    for _, record in take_records(model):
        if record:
            record[RECORD_KEY]["training"][-1]["steps"] = steps


def recount_zeros(model: "PreTrainedModel") -> None:
    """Makes the counts in the record of a model those of its weights; without a record nothing is written.

    Matrices that are not found keep their counts.
    """
    record = sparsity_record(model)
    if record is None:
        return
    found = loaded_matrices(model)
    names = match_names(record.matrices, found)
    matrices = [
        dataclasses.replace(matrix, zeros=found[names[matrix.name]].count_zeros()) if matrix.name in names else matrix
        for matrix in record.matrices
    ]
    document = record.to_dict()
    blocks = document["blocks"]["names"]
    zeros = {(matrix.block, matrix.path): matrix.zeros for matrix in matrices}
    for path, entry in document["matrices"].items():
        entry["zeros"] = [zeros.get((block, path)) for block in blocks]
    inside = {block: [matrix for matrix in matrices if matrix.block == block] for block in blocks}
    document["blocks"]["sparsity"] = [round(share_of_zeros(inside[block]), 6) for block in blocks]
    document["achieved_sparsity"] = share_of_zeros(matrices)
    attach_record(model, SparsityRecord.parse(document))
