"""Entries that a mask marks are taken and set to zero by their bits, whatever they hold and however they lie."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from optimum_mwanda.modeling import bits
from optimum_mwanda.modeling.bits import as_integers, marked, zero_marked

SPECIAL = [0.0, -0.0, math.nan, -math.nan, math.inf, -math.inf, 1.5, -2.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
@pytest.mark.parametrize("lie", [lambda x: x, lambda x: x.T, lambda x: x[:, ::2]], ids=["rows", "columns", "strided"])
@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_marked_entries_keep_their_bits_and_the_others_theirs(
    dtype: torch.dtype, lie: Callable[[Tensor], Tensor], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bits, "_CACHED", at_once)
    whole = torch.tensor(SPECIAL * 6).view(6, 8).to(dtype)
    before, values = lie(as_integers(whole.clone())), lie(whole)
    mask = torch.rand(values.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    for places in (mask, torch.zeros(values.shape).bool(), torch.ones(values.shape).bool()):
        assert marked(values, places).dtype == dtype
        assert torch.equal(as_integers(marked(values, places)), as_integers(values)[places])
    zero_marked(values, mask)
    assert torch.equal(as_integers(values), before.masked_fill(mask, 0))


def test_autograd_notices_that_entries_were_set_to_zero() -> None:
    weight = torch.ones(3, requires_grad=True)
    loss = weight.square().sum()
    with torch.no_grad():
        zero_marked(weight, torch.tensor([True, False, True]))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_nothing_is_taken_of_nothing() -> None:
    assert marked(torch.empty(0, 3), torch.empty(0, 3, dtype=torch.bool)).shape == (0,)
