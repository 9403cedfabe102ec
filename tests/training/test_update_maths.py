import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from optimum_mwanda.training.update_maths import dora_update, keep_zeros, masked, update_norms

TYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 6))


def matrices(shape: tuple[int, int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A pruned matrix, perhaps with rows of zeros, an update and the norms of rows, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    weight, update = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    weight = weight.masked_fill(torch.rand(shape, generator=generator) < 0.6, 0)
    return weight, update, torch.rand(shape[0], generator=generator, dtype=torch.float64)


def test_norms_by_hand() -> None:
    weight = torch.tensor([[1.0, 0.0], [0.0, -2.0]])
    update = torch.tensor([[5.0, 3.0], [4.0, 12.0]])
    assert update_norms(update, weight) == pytest.approx((math.sqrt(194), 5))
    assert masked(update, weight).tolist() == [[5, 0], [0, 12]]


@pytest.mark.parametrize("dtype", TYPES)
def test_only_what_was_zero_is_zero_after_a_merge(dtype: torch.dtype) -> None:
    weight, merged = torch.tensor([0, 0, -1, -1, 2], dtype=dtype), torch.tensor([0, 3, 0, -0.0, 4], dtype=dtype)
    tiny = torch.finfo(dtype).tiny
    assert keep_zeros(merged, weight).tolist() == [0, 0, tiny, tiny, 4]


def test_dora_by_hand() -> None:
    weight, update = torch.tensor([[3.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, 0.0]])
    assert dora_update(weight, update, torch.tensor([10.0, 7.0])).tolist() == [[3, 8], [0, 0]]


@given(SHAPES, st.integers(0, 1000))
def test_the_part_that_is_kept_and_the_part_that_is_lost_make_the_whole(shape: tuple[int, int], seed: int) -> None:
    weight, update, _ = matrices(shape, seed)
    whole, lost = update_norms(update, weight)
    kept, none = update_norms(masked(update, weight), weight)
    assert none == 0
    assert math.hypot(kept, lost) == pytest.approx(whole)


@given(SHAPES, st.integers(0, 1000))
def test_masked_dora_writes_no_zero_and_gives_rows_their_magnitude(shape: tuple[int, int], seed: int) -> None:
    weight, update, magnitude = matrices(shape, seed)
    changed = weight + dora_update(weight, masked(update, weight), magnitude)
    assert not changed[weight == 0].any()
    alive = weight.any(dim=1)
    torch.testing.assert_close(changed.norm(dim=1)[alive], magnitude[alive])


@given(SHAPES, st.integers(0, 1000))
def test_gradients_of_masked_dora_are_finite_and_pass_kept_entries_only(shape: tuple[int, int], seed: int) -> None:
    weight, update, magnitude = matrices(shape, seed)
    update.requires_grad_(), magnitude.requires_grad_()
    dora_update(weight, masked(update, weight), magnitude).square().sum().backward()
    assert torch.isfinite(magnitude.grad).all()
    assert torch.isfinite(update.grad).all()
    assert not update.grad[weight == 0].any()


@given(SHAPES, st.integers(0, 1000))
def test_dora_that_has_learned_nothing_changes_nothing(shape: tuple[int, int], seed: int) -> None:
    weight, update, _ = matrices(shape, seed)
    torch.testing.assert_close(dora_update(weight, 0 * update, weight.norm(dim=1)), torch.zeros_like(weight))
