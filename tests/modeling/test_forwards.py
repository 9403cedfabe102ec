from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optimum_mwanda.modeling.forwards import recomputed, replaced


class Block(nn.Module):
    """Counts how often it runs, and has an argument of a name that others use too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.runs = nn.Linear(3, 3), 0

    def forward(self, x: Tensor, *, debug: float) -> tuple[Tensor, str]:
        self.runs += 1
        return self.linear(x).tanh() * debug, "other"


@pytest.mark.parametrize("has_own", [True, False])
def test_what_a_module_did_is_what_it_does_afterwards(has_own: bool) -> None:
    module = nn.Linear(2, 2)
    own: Any = lambda x: x + 1  # noqa: E731
    if has_own:
        module.forward = own
    with replaced({module: abs}):
        assert module(-3) == 3
    with pytest.raises(TypeError), replaced({module: abs}):
        module("stop")
    assert vars(module).get("forward") is (own if has_own else None)


def test_modules_that_run_once_more_give_the_same_gradients() -> None:
    block, x = Block(), torch.randn(2, 3, requires_grad=True)
    (plain,) = torch.autograd.grad(block(x, debug=2.0)[0].sum(), x)
    block.runs = 0
    with recomputed([block]):
        output, other = block(x, debug=2.0)
        assert (block.runs, other) == (1, "other")
        (again,) = torch.autograd.grad(output.sum(), x)
    assert block.runs == 2
    assert torch.equal(plain, again)
    assert "forward" not in vars(block)
