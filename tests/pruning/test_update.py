from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from optimum_mwanda import MWandaConfig
from optimum_mwanda.modeling.weights import PrunableWeight
from optimum_mwanda.pruning.masks import n_of_m_mask, unstructured_mask
from optimum_mwanda.pruning.selection import select_part
from optimum_mwanda.pruning.update import mask_and_values

from ..reference import obs


def make_layer(rows: int, width: int, tokens: int, dtype: torch.dtype = torch.float32) -> tuple[PrunableWeight, Tensor]:
    """A weight, and the Gram matrix of correlated inputs in float32; one channel is loud and one is dead."""
    generator = torch.Generator().manual_seed(width)
    draw = partial(torch.randn, generator=generator)
    x = draw(tokens, width) + draw(tokens, 2) @ draw(2, width)
    x[:, 0] *= 1e4
    x[:, width // 2] = 0
    linear = nn.Linear(width, rows, bias=False)
    linear.weight.data = 0.02 * draw(rows, width)
    gram = x.T @ x
    return PrunableWeight("linear", "block", linear.to(dtype)), gram / gram.trace()


def update(weight: PrunableWeight, gram: Tensor, sparsity: float, **settings: Any) -> tuple[Tensor, Tensor]:
    config = MWandaConfig(**settings)
    pruned, values = mask_and_values(weight, None, gram, torch.ones(1), sparsity, config)
    assert values is not None
    return pruned, values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [5, 200])
@pytest.mark.parametrize("settings", [{"group": "row"}, {"group": "matrix"}, {"pattern": "2:4"}], ids=str)
@pytest.mark.parametrize("method", [{"criterion": "alps"}, {"criterion": "magnitude", "reconstruction": "obs"}])
def test_no_row_is_worse_than_under_its_own_mask_without_an_update(
    method: dict[str, Any], settings: dict[str, Any], tokens: int, dtype: torch.dtype
) -> None:
    weight, gram = make_layer(6, 16, tokens, dtype)
    pruned, values = update(weight, gram, 0.6, **method, **settings)
    assert values.dtype == dtype
    assert torch.equal(values == 0, pruned)
    masked = weight.matrix.masked_fill(pruned, 0)
    before, after = (
        obs.exact_errors(*(x.double().numpy() for x in (weight.matrix, other, gram))) for other in (masked, values)
    )
    assert (after <= before).all()
    assert after.sum() < 0.9 * before.sum()


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.55, 0.999])
@pytest.mark.parametrize("width", [5, 128, 129, 200, 448])
@pytest.mark.parametrize("group", ["row", "matrix"])
def test_sparsegpt_prunes_as_many_as_a_score_would(group: str, width: int, sparsity: float) -> None:
    weight, gram = make_layer(3, width, 50)
    pruned, values = update(weight, gram, sparsity, criterion="sparsegpt", group=group)
    if group == "row":
        assert (pruned.sum(1) == int(np.floor(sparsity * width + 0.5))).all()
    assert pruned.sum() == unstructured_mask(torch.rand(3, width), sparsity, group).sum()
    assert (values[pruned] == 0).all()


def test_sparsegpt_keeps_n_of_m_whatever_the_sparsity() -> None:
    weight, gram = make_layer(3, 160, 50)
    pruned, _ = update(weight, gram, 0.9, criterion="sparsegpt", pattern="3:8")
    assert (pruned.view(3, -1, 8).sum(2) == 5).all()


@given(st.lists(st.integers(1, 200), min_size=1, max_size=6), st.floats(0, 0.999), st.sampled_from(["row", "matrix"]))
def test_counts_of_parts_add_up_and_are_off_by_less_than_one(parts: list[int], sparsity: float, group: str) -> None:
    config, rows = MWandaConfig(group=group), 3
    scores = torch.rand(rows, sum(parts))
    starts = [sum(parts[:number]) for number in range(len(parts))]
    masks = [
        select_part(scores[:, first : first + columns], first, sparsity, config)
        for first, columns in zip(starts, parts, strict=True)
    ]
    whole = unstructured_mask(scores, sparsity, group)
    for mask, columns in zip(masks, parts, strict=True):
        assert mask.shape == (rows, columns)
        height = 1 if group == "row" else rows
        assert ((mask.view(rows // height, -1).sum(1) - sparsity * columns * height).abs() < 1 + 1e-9).all()
    together = torch.cat(masks, dim=1)
    assert torch.equal(together.sum(1) if group == "row" else together.sum(), whole.sum(1 if group == "row" else None))


@pytest.mark.parametrize("group", ["row", "matrix"])
def test_a_part_that_is_all_of_it_is_selected_like_any_scores(group: str) -> None:
    scores = torch.rand(4, 30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(select_part(scores, 0, 0.37, MWandaConfig(group=group)), unstructured_mask(scores, 0.37, group))
    pattern = MWandaConfig(group=group, pattern="1:5")
    assert torch.equal(select_part(scores, 10, 0.37, pattern), n_of_m_mask(scores, 1, 5))


UPDATING = [{"criterion": "alps"}, {"criterion": "sparsegpt"}, {"criterion": "magnitude", "reconstruction": "obs"}]


@pytest.mark.parametrize("method", UPDATING, ids=str)
def test_without_correlations_the_weights_that_stay_keep_their_values(method: dict[str, Any]) -> None:
    weight, gram = make_layer(6, 16, 200)
    pruned, values = update(weight, gram, 0.5, reconstruction_shrinkage=1.0, **method)
    torch.testing.assert_close(values, weight.matrix.masked_fill(pruned, 0), atol=0, rtol=1e-4)
    assert not torch.equal(update(weight, gram, 0.5, **method)[1], values)


@pytest.mark.parametrize("method", UPDATING, ids=str)
def test_shrinkage_is_that_of_the_gram_matrix_that_is_solved_with(method: dict[str, Any]) -> None:
    weight, gram = make_layer(6, 16, 200)
    found = update(weight, gram, 0.5, reconstruction_shrinkage=0.25, **method)
    shrunk = 0.75 * gram + 0.25 * torch.diag(gram.diagonal())
    for one, other in zip(found, update(weight, shrunk, 0.5, **method), strict=True):
        torch.testing.assert_close(one, other)


def test_shrinkage_of_reconstruction_is_not_that_of_refinement() -> None:
    weight, gram = make_layer(6, 16, 200)
    settings = {"criterion": "magnitude", "refinement": "swap", "reconstruction": "obs"}
    plain, shrunk = (update(weight, gram, 0.5, **settings, reconstruction_shrinkage=each) for each in (0.0, 0.5))
    assert torch.equal(plain[0], shrunk[0])
    assert not torch.equal(plain[1], shrunk[1])
