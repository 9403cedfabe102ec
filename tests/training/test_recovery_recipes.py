"""Recoveries whose masks move, or whose blocks take turns."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from optimum_mwanda import RecoverySettings, read_masks, recover, sparsity_record, verify_sparsity

from ..conftest import make_rows, state_of


@pytest.mark.parametrize(
    ("settings", "moves"),
    [
        ({"recipe": "rigl", "rigl_alpha": 0.3}, True),
        ({"recipe": "rigl", "rigl_interval": 3, "learning_rate": 1e-2}, True),
        ({"recipe": "rigl"}, False),  # nothing could replace a weight in five steps
        ({"recipe": "lisa"}, False),
    ],
)
def test_a_recovery_says_what_it_did(settings: dict[str, Any], moves: bool, tiny: PreTrainedModel) -> None:
    masks, weights = read_masks(tiny), state_of(tiny)
    rows = make_rows("en sw", rows=12)
    recovery = recover(tiny, rows, progress=False, tokens=160, sequence_length=16, batch_size=2, **settings)
    assert recovery.steps == 5
    assert verify_sparsity(recovery.model).ok
    record = sparsity_record(recovery.model)
    assert record is not None
    assert [(entry.recipe, entry.steps) for entry in record.training] == [(settings["recipe"], 5)]
    after = read_masks(recovery.model)
    assert any(not torch.equal(masks[name], after[name]) for name in masks) is moves
    changed = [not torch.equal(weights[name], tensor) for name, tensor in tiny.state_dict().items()]
    assert all(changed) is not (settings["recipe"] == "lisa")  # of its three blocks, two train


def test_an_interval_that_is_not_allowed_is_refused() -> None:
    with pytest.raises(ValueError, match="rigl_interval=0 is not allowed"):
        RecoverySettings(rigl_interval=0)
    with pytest.raises(ValueError, match="lisa_blocks=0 is not allowed"):
        RecoverySettings(lisa_blocks=0)
