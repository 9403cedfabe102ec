from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optimum_mwanda import MWandaConfig
from optimum_mwanda.modeling.weights import PrunableWeight
from optimum_mwanda.pruning.sensitivity import Sensitivity, pool_rows, row_factors
from optimum_mwanda.pruning.update import mask_and_values

from .test_update import make_layer

DOUBLE = torch.float64


def test_every_language_counts_by_its_weight_whatever_the_size_of_its_gradients() -> None:
    sums = torch.tensor([[1.0, 3.0], [800.0, 200.0], [0.0, 0.0]], dtype=DOUBLE)
    pooled = pool_rows(sums, torch.tensor([0.5, 0.3, 0.2], dtype=DOUBLE))
    torch.testing.assert_close(pooled, torch.tensor([0.5 * 0.25 + 0.3 * 0.8, 0.5 * 0.75 + 0.3 * 0.2], dtype=DOUBLE))


def test_factor_of_a_row_is_a_root_of_its_share() -> None:
    rows = torch.tensor([1.0, 16.0, 7.0], dtype=DOUBLE)  # their mean is 8
    for exponent, power in ((1.0, 0.5), (0.5, 0.25), (0.0, 0.0)):
        expected = [(value / 8) ** power for value in (1.0, 16.0, 7.0)]
        assert row_factors(rows, exponent)[:, 0].tolist() == pytest.approx(expected)


def masks(weight: PrunableWeight, gram: Tensor, rows: Tensor | None, **settings: Any) -> tuple[Tensor, Tensor | None]:
    config = MWandaConfig(group="matrix", sensitivity="fisher", **settings)
    sensitivity = None if rows is None else Sensitivity(rows, None)
    return mask_and_values(weight, None, gram, torch.ones(1), 0.6, config, sensitivity=sensitivity)


@pytest.mark.parametrize("criterion", ["sparsegpt", "alps"])
def test_solvers_choose_the_mask_of_a_matrix_whose_rows_are_scaled(criterion: str) -> None:
    weight, gram = make_layer(6, 16, 200, DOUBLE)
    gram = gram.double()
    rows = torch.tensor([1.0, 4.0, 16.0, 1 / 4, 1.0, 64.0], dtype=DOUBLE)
    pruned, values = masks(weight, gram, rows, criterion=criterion, sensitivity_exponent=1.0)
    factors = (rows / rows.mean()).sqrt()[:, None]
    linear = nn.Linear(16, 6, bias=False, dtype=DOUBLE)
    linear.weight.data = weight.matrix * factors
    scaled, scaled_values = masks(PrunableWeight("linear", "block", linear), gram, None, criterion=criterion)
    assert values is not None
    assert scaled_values is not None
    assert torch.equal(pruned, scaled)
    torch.testing.assert_close(values * factors, scaled_values, rtol=1e-4, atol=1e-9)
    plain, _ = masks(weight, gram, None, criterion=criterion)
    assert not torch.equal(pruned, plain)
