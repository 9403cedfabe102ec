import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from optimum_mwanda import MWandaConfig, MWandaPruner, prune_checkpoint
from optimum_mwanda.pruning.same_input import once_per_input, sharing_inputs, to_overwrite
from tests.conftest import make_model, make_rows

SETTINGS: dict[str, Any] = {
    "criterion": "sparsegpt",
    "damping": 0.1,
    "allocation": "uniform",
    "samples_per_language": 4,
    "sequence_length": 16,
}


@pytest.fixture
def factors(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Widths of the Gram matrices that are factored, which are so small that this is done in one go."""
    found = []
    factor = torch.linalg.cholesky_ex

    def counted(matrix: Tensor) -> Any:
        found.append(len(matrix))
        return factor(matrix)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", counted)
    return found


@pytest.mark.parametrize("settings", [{}, {"reconstruction_shrinkage": 0.2}, {"calibration": "dense"}])
def test_each_input_is_factored_once_and_values_stay_the_same(
    settings: dict[str, Any], factors: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    inputs = [
        (layer.self_attn.q_proj, layer.self_attn.o_proj, layer.mlp.gate_proj, layer.mlp.down_proj)
        for layer in model.model.layers
    ]
    config = MWandaConfig(**{**SETTINGS, **settings})
    shared = MWandaPruner(config, progress=False).prune(make_model(), make_rows())
    assert factors == [module.in_features for block in inputs for module in block]

    monkeypatch.setattr("optimum_mwanda.walking.together.sharing_inputs", lambda **_: torch.no_grad())
    alone = MWandaPruner(config, progress=False).prune(make_model(), make_rows())
    assert len(factors) == 4 * len(inputs) + 7 * len(inputs)
    assert all(torch.equal(*each) for each in zip(shared.parameters(), alone.parameters(), strict=True))


def test_each_input_is_factored_once_from_disk(tmp_path: Path, factors: list[int]) -> None:
    make_model().save_pretrained(tmp_path / "dense")
    prune_checkpoint(tmp_path / "dense", tmp_path / "pruned", MWandaConfig(**SETTINGS), make_rows())
    assert len(factors) == 4 * len(make_model().model.layers)


def test_what_was_found_last_is_kept_until_something_else_is_asked_for() -> None:
    calls = []

    @once_per_input
    def double(gram: Tensor, factor: float) -> Tensor:
        assert not earlier or earlier[-1]() is None  # gone before the next one is made
        calls.append(factor)
        result = gram * factor
        earlier.append(weakref.ref(result))
        return result

    earlier: list[Any] = []
    one, other = torch.eye(2), torch.eye(2)
    with sharing_inputs():
        for gram, factor in ((one, 2.0), (one, 2.0), (one, 3.0), (other, 3.0), (other, 3.0), (one, 3.0)):
            assert torch.equal(double(gram, factor), gram * factor)
    assert calls == [2, 3, 3, 3]
    double(one, 3.0)
    double(one, 3.0)
    assert calls == [2, 3, 3, 3, 3, 3]  # nothing is kept outside


def test_only_what_is_given_away_is_overwritten() -> None:
    own, other = torch.eye(2), torch.eye(2)
    with sharing_inputs(given_away={"a": own}.values()):
        assert to_overwrite(own) is own
        assert to_overwrite(other) is not other
    assert to_overwrite(own) is not own
