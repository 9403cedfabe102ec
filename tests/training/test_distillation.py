"""The loss of distillation against the plain formula, and what it holds in memory."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from optimum_mwanda import distillation_loss

BATCH, TOKENS, VOCABULARY = 2, 5, 7


def example(dtype: torch.dtype = torch.float64, seed: int = 0, batch: int = BATCH) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits, dense = 3 * torch.randn(2, batch, TOKENS, VOCABULARY, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(VOCABULARY, (batch, TOKENS), generator=generator)
    labels[0, 2:4] = -100
    return logits.requires_grad_(), dense, labels


def plain(
    logits: Tensor, dense: Tensor, labels: Tensor, alpha: float, temperature: float, weights: Any = None
) -> Tensor:
    """The formula, written for all tokens at once."""
    q, p = ((each[:, :-1] / temperature).softmax(-1) for each in (logits, dense))
    divergence = (p * (p / q).log()).sum(-1)
    targets = labels[:, 1:]
    likelihood = logits[:, :-1].softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    losses = alpha * temperature**2 * divergence - (1 - alpha) * likelihood.log()
    weights = torch.ones(len(labels)) if weights is None else weights
    return (losses * (targets >= 0) * weights[:, None]).sum() / (targets >= 0).sum()


def test_one_token_by_hand() -> None:
    # p = (3/4, 1/4) and q = (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2); the label has probability 1/2.
    logits, dense = torch.zeros(1, 2, 2), torch.tensor([3.0, 1.0]).log().expand(1, 2, 2)
    divergence = 0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()
    labels = torch.tensor([[0, 1]])
    assert distillation_loss(logits, dense, labels, alpha=1) == pytest.approx(float(divergence))
    assert distillation_loss(logits, dense, labels, alpha=0) == pytest.approx(float(torch.tensor(2.0).log()))
    mixed = 0.25 * divergence + 0.75 * torch.tensor(2.0).log()
    assert distillation_loss(logits, dense, labels, alpha=0.25) == pytest.approx(float(mixed))


@given(
    st.floats(0, 1),
    st.floats(0.2, 5),
    st.integers(1, 12),
    st.integers(0, 1000),
    st.lists(st.floats(0, 3), min_size=BATCH, max_size=BATCH),
)
def test_agrees_with_the_plain_formula(
    alpha: float, temperature: float, chunk: int, seed: int, weights: list[float]
) -> None:
    logits, dense, labels = example(seed=seed)
    by_row = torch.tensor(weights, dtype=torch.float64)
    loss = distillation_loss(logits, dense, labels, alpha=alpha, temperature=temperature, weights=by_row, chunk=chunk)
    expected = plain(logits, dense, labels, alpha, temperature, by_row)
    torch.testing.assert_close(loss, expected)
    (gradient,), (by_autograd,) = torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, by_autograd)


@pytest.mark.parametrize("alpha", [0, 0.3, 1])
def test_gradients_are_those_of_finite_differences(alpha: float) -> None:
    logits, dense, labels = example()

    def loss(logits: Tensor) -> Tensor:
        return distillation_loss(logits, dense, labels, alpha=alpha, temperature=2, chunk=3)

    assert torch.autograd.gradcheck(loss, logits)


def test_nothing_is_learned_from_a_model_that_predicts_the_same() -> None:
    logits, _, labels = example()
    loss = distillation_loss(logits, logits, labels, alpha=1)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.grad(loss, logits)[0].abs().max() < 1e-12


def test_what_is_no_target_has_no_part() -> None:
    logits, dense, labels = example()
    other = logits.detach().clone()
    other[:, -1] = torch.nan  # the last token predicts nothing
    other[0, 1:3] = torch.inf
    other.requires_grad_()
    loss = distillation_loss(logits, dense, labels)
    torch.testing.assert_close(distillation_loss(other, dense, labels), loss)
    gradient, expected = (torch.autograd.grad(distillation_loss(x, dense, labels), x)[0] for x in (other, logits))
    torch.testing.assert_close(gradient, expected)
    assert not gradient[0, 1:3].any()


def test_batches_without_targets_have_no_loss() -> None:
    logits, dense, labels = example()
    assert distillation_loss(logits, dense, torch.full_like(labels, -100)) == 0


def test_impossible_tokens_of_the_dense_model_cost_nothing() -> None:
    logits, dense, labels = example()
    dense[..., 0] = -torch.inf
    labels = labels.clamp(min=1)
    assert distillation_loss(logits, dense, labels).isfinite()
    logits = logits.detach().clone()
    logits[..., 0] = -torch.inf  # as padding of the vocabulary
    logits.requires_grad_()
    loss = distillation_loss(logits, dense, labels, alpha=1)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_sums_over_accumulated_batches_are_those_of_one_batch() -> None:
    logits, dense, labels = example(batch=4)
    items = (labels[:, 1:] != -100).sum()
    halves = [
        distillation_loss(logits[i : i + 2], dense[i : i + 2], labels[i : i + 2], num_items=items) for i in (0, 2)
    ]
    torch.testing.assert_close(sum(halves), distillation_loss(logits, dense, labels))
    torch.testing.assert_close(sum(halves), distillation_loss(logits, dense, labels, num_items=int(items)))


def test_half_precision_is_summed_in_single() -> None:
    logits, dense, labels = example(torch.bfloat16)
    loss = distillation_loss(logits, dense, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), plain(logits.double(), dense.double(), labels, 0.5, 1.0))
    assert torch.autograd.grad(loss, logits)[0].dtype == torch.bfloat16


class Large(TorchDispatchMode):
    """Counts the new tensors that are at least as large as some size."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.known: dict[int, Tensor] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if torch.is_tensor(leaf) and leaf.numel() >= self.size:
                place = leaf.untyped_storage().data_ptr()
                if place not in before:
                    self.known[place] = leaf  # kept, so that no other tensor comes to lie there
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_but_the_gradient_is_as_large_as_the_logits(dtype: torch.dtype) -> None:
    logits, dense = torch.randn(2, 4, 16, 50).to(dtype)
    logits.requires_grad_()
    labels = torch.randint(50, (4, 16))
    a_quarter = logits.numel() // 4
    with Large(a_quarter) as forward:
        loss = distillation_loss(logits, dense, labels, temperature=2, chunk=8)
    with Large(a_quarter) as backward:
        loss.backward()
    assert [*forward.known.values()] == []
    (gradient,) = backward.known.values()
    assert gradient.dtype == dtype
    assert gradient.numel() == logits.numel()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.1}, "alpha=1.1 is not allowed: give a number from 0 to 1"),
        ({"temperature": 0}, "temperature=0 is not allowed: give a number above 0"),
        ({"chunk": 0}, "chunk=0 is not allowed"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distillation_loss(*example(), **settings)


def test_other_vocabularies_are_refused() -> None:
    logits, dense, labels = example()
    with pytest.raises(ValueError, match=r"\(2, 5, 7\), those of the dense model \(2, 5, 6\)"):
        distillation_loss(logits, dense[..., :-1], labels)
