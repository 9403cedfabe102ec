import pytest
import torch
from torch import Tensor

from optimum_mwanda.pruning.inverse_factor import inverse_factor
from optimum_mwanda.pruning.same_input import sharing_inputs


def gram(width: int, tokens: int = 900) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, width, generator=generator, dtype=torch.float64) + torch.linspace(-1, 1, tokens)[:, None]
    return x.T @ x


def damped(square: Tensor, share: float) -> Tensor:
    return square + share * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)


@pytest.mark.parametrize("width", [1, 100, 256, 600])
@pytest.mark.parametrize("is_given_away", [False, True])
def test_its_square_is_the_inverse_wherever_it_is_written(width: int, is_given_away: bool) -> None:
    square = gram(width)
    before = square.clone()
    with sharing_inputs(given_away=[square] if is_given_away else []):
        upper, dead = inverse_factor(square, 0.1)
        assert inverse_factor(square, 0.1).upper is upper
    assert (upper is square) is is_given_away
    assert is_given_away or torch.equal(square, before)
    assert not dead.any()
    expected = torch.linalg.inv(damped(before, 0.1))
    torch.testing.assert_close(upper.triu().T @ upper.triu(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("is_given_away", [False, True])
def test_an_indefinite_matrix_is_damped_more_in_its_own_memory_too(is_given_away: bool) -> None:
    square = gram(600)
    values, vectors = torch.linalg.eigh(square)
    values[0] = -0.05 * square.diagonal().mean()
    square = vectors @ torch.diag(values) @ vectors.T
    square = (square + square.T) / 2
    expected = inverse_factor(square.clone(), 0.1).upper.triu()
    with sharing_inputs(given_away=[square] if is_given_away else []):
        torch.testing.assert_close(inverse_factor(square, 0.01).upper.triu(), expected)


def test_float32_comes_as_close_as_the_factor_of_the_inverse() -> None:
    square = gram(600)
    exact = inverse_factor(square, 0.01).upper.triu()
    single = damped(square.float(), 0.01)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(single))
    usual = torch.linalg.cholesky(inverse, upper=True)
    found = inverse_factor(square.float(), 0.01).upper.triu()
    assert (found - exact).norm() <= (usual - exact).norm()
