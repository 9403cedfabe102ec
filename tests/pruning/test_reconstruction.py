from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from optimum_mwanda.pruning.masks import n_of_m_mask, unstructured_mask
from optimum_mwanda.pruning.reconstruction import admm, layer_error, reconstruct, sparsegpt

from ..reference import obs

Select = Callable[[Tensor], Tensor]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
matrix_half = partial(unstructured_mask, sparsity=0.5, group="matrix")
row_half = partial(unstructured_mask, sparsity=0.5, group="row")
two_of_four = partial(n_of_m_mask, kept=2, run=4)


def correlated(seed: int, tokens: int = 200, width: int = 12, rank: int = 4, noise: float = 0.3) -> Tensor:
    """Activations whose channels explain one another, on very different scales."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    shared = draw(tokens, rank) @ draw(rank, width)
    return (shared + noise * draw(tokens, width)) * torch.logspace(-1, 1, width, dtype=torch.float64)


def in_parts(select: Select) -> Callable[[Tensor, int], Tensor]:
    """For a share that gives whole numbers in every part."""
    return lambda scores, _: select(scores)


def dense_weight(seed: int, rows: int = 6, width: int = 12) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def damped(x: Tensor) -> obs.Array:
    return (x.T @ x).numpy() + obs.ridge(x.numpy(), 0.01) * np.eye(x.shape[1])


def errors(weight: Tensor, update: Tensor, x: Tensor) -> Tensor:
    return torch.tensor(obs.layer_error(weight.double().numpy(), update.double().numpy(), x.numpy()))


def exact_errors(weight: Tensor, update: Tensor, gram: Tensor) -> obs.Array:
    return obs.exact_errors(*(values.double().numpy() for values in (weight, update, gram)))


@st.composite
def layers(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, mask and activations: few or many tokens, dead, doubled, tiny and huge channels, masks of every kind."""
    rows, width, tokens = draw(st.integers(1, 4)), draw(st.integers(1, 8)), draw(st.integers(1, 20))
    seed = draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, generator=generator, dtype=torch.float64)
    widest = draw(st.sampled_from([0, 3, 8]))
    x = x * 10.0 ** torch.randint(-widest, widest + 1, (width,), generator=generator)
    x[:, draw(st.lists(st.integers(0, width - 1), max_size=width))] = 0
    if width > 1 and draw(st.booleans()):
        x[:, 0] = x[:, 1]
    weight = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    share = draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    scores = torch.rand(rows, width, generator=generator)
    if draw(st.booleans()):
        scores = weight.abs() * x.norm(dim=0)
    return weight, unstructured_mask(scores, share, draw(st.sampled_from(["row", "matrix"]))), x


class TestReconstruct:
    def test_the_lost_output_moves_to_a_channel_that_says_the_same(self) -> None:
        x = torch.tensor([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 5.0]])  # channel 1 is twice channel 0
        update = reconstruct(
            torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[False, True, False]]), x.T @ x, damping=0.0
        )
        assert torch.allclose(update, torch.tensor([[3.0, 0.0, 1.0]]))

    def test_one_pruned_weight_gives_the_surgeons_step(self) -> None:
        weight, x = dense_weight(0), correlated(0)
        pruned = torch.zeros_like(weight, dtype=torch.bool)
        pruned[range(6), [0, 3, 5, 7, 9, 11]] = True
        update = reconstruct(weight, pruned, x.T @ x, damping=0.01, iterations=500, tolerance=1e-24)
        damped_gram = damped(x)
        for row, column in pruned.nonzero().tolist():
            expected = obs.remove_one(weight[row].numpy(), column, damped_gram)
            np.testing.assert_allclose(update[row].numpy(), expected, rtol=1e-8, atol=1e-10)

    @pytest.mark.parametrize("damping", [0.001, 0.1])
    @pytest.mark.parametrize("select", [matrix_half, row_half, two_of_four])
    def test_it_is_the_least_squares_solution(self, select: Select, damping: float) -> None:
        weight, x = dense_weight(1), correlated(1)
        pruned = select(weight.abs())
        options = {"damping": damping, "iterations": 1000, "tolerance": 1e-24}
        update = reconstruct(weight, pruned, x.T @ x, **options)
        expected = obs.least_squares(weight.numpy(), pruned.numpy(), x.numpy(), damping, (x @ weight.T).numpy())
        np.testing.assert_allclose(update.numpy(), expected, rtol=1e-6, atol=1e-8)

    @pytest.mark.parametrize("damping", [0.01, 0.1])
    @pytest.mark.parametrize("noise", [0.03, 0.1])
    def test_by_default_it_ends_within_a_thousandth_of_the_optimum(self, noise: float, damping: float) -> None:
        x, weight = correlated(0, tokens=2000, width=256, rank=40, noise=noise), dense_weight(1, width=256)
        pruned = unstructured_mask(weight.abs() * x.norm(dim=0), 0.6, "matrix")
        update = reconstruct(weight.float(), pruned, (x.T @ x).float(), damping=damping)
        best = obs.least_squares(weight.numpy(), pruned.numpy(), x.numpy(), damping, (x @ weight.T).numpy())
        pull = obs.ridge(x.numpy(), damping)
        reached, least = (
            errors(weight, values, x).sum() + pull * (weight - values).square().sum()
            for values in (update.double(), torch.tensor(best))
        )
        assert reached < 1.001 * least

    @given(
        layers(),
        st.sampled_from(DTYPES),
        st.sampled_from([torch.float32, torch.float64]),
        st.sampled_from([0.0, 0.01, 1.0]),
        st.sampled_from([1e-3, 1.0, 1e3]),  # of the largest, updates can overflow float16
        st.booleans(),
    )
    @settings(max_examples=300)
    def test_no_row_as_it_is_stored_is_ever_worse_than_its_masked_weights(
        self,
        layer: tuple[Tensor, Tensor, Tensor],
        dtype: torch.dtype,
        precision: torch.dtype,
        damping: float,
        scale: float,
        elsewhere: bool,
    ) -> None:
        weight, pruned, x = layer
        weight, gram = (weight * scale).to(dtype), (x.T @ x).to(precision)
        start = weight.roll(1, 0).to(precision) if elsewhere else None
        update = reconstruct(weight, pruned, gram, start=start, damping=damping)
        assert update.dtype == dtype
        assert (update[pruned] == 0).all()
        masked = weight.masked_fill(pruned, 0)
        before, after = exact_errors(weight, masked, gram), exact_errors(weight, update, gram)
        moved = (update != masked).any(1).numpy()
        assert (after[moved] < before[moved]).all()

    @pytest.mark.parametrize("loud", [1.0, 1e4, 1e6])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_a_gram_in_float32_is_enough_however_loud_one_channel_is(self, dtype: torch.dtype, loud: float) -> None:
        weight, x = dense_weight(2, rows=16).to(dtype), correlated(2) / torch.logspace(-1, 1, 12, dtype=torch.float64)
        x[:, 5] *= loud
        pruned = weight.abs() < 0.7
        pruned[:, 5] = False  # as no score would
        old = weight.double().numpy()
        best = obs.least_squares(old, pruned.numpy(), x.numpy(), 0.01, x.numpy() @ old.T)
        update = reconstruct(weight, pruned, (x.T @ x).float())
        masked, reached, least = (
            errors(weight, values, x).sum() for values in (weight.masked_fill(pruned, 0), update, torch.tensor(best))
        )
        # In half precision the weight of a loud channel can only move in steps that are too large to be of use.
        allowed = 0.5 if loud > 1 and dtype.itemsize == 2 else 0.01
        assert least < 0.2 * masked
        assert reached - least < allowed * (masked - least)

    def test_rows_without_a_loss_and_channels_that_are_never_active_keep_their_weights(self) -> None:
        weight, x = dense_weight(3), correlated(3)
        x[:, 4] = 0
        pruned = torch.zeros_like(weight, dtype=torch.bool)
        pruned[0, :3] = True
        update = reconstruct(weight, pruned, x.T @ x)
        assert torch.equal(update[1:], weight[1:])
        assert update[0, 4] == weight[0, 4]
        assert not torch.allclose(update[0, 5:], weight[0, 5:])

    def test_channels_that_are_never_active_keep_their_weights_wherever_it_starts(self) -> None:
        weight, x = dense_weight(3), correlated(3)
        x[:, :3] = 0
        pruned = two_of_four(weight.abs() * x.norm(dim=0))
        assert not pruned[:, 2].any()
        update = reconstruct(weight, pruned, x.T @ x, start=torch.zeros_like(weight))
        assert torch.equal(update[:, :3], weight.masked_fill(pruned, 0)[:, :3])
        assert (update == 0).sum() == pruned.sum()

    def test_a_start_is_only_a_start(self) -> None:
        weight, x = dense_weight(4), correlated(4)
        pruned = matrix_half(weight.abs())
        options = {"iterations": 1000, "tolerance": 1e-24}
        elsewhere = reconstruct(weight, pruned, x.T @ x, start=dense_weight(5), **options)
        assert torch.allclose(elsewhere, reconstruct(weight, pruned, x.T @ x, **options), rtol=1e-6, atol=1e-8)

    def test_a_gram_that_is_not_finite_is_an_error(self) -> None:
        gram = torch.eye(12, dtype=torch.float64)
        gram[0, 0] = float("inf")
        weight = dense_weight(0)
        for solve in (lambda: reconstruct(weight, weight < 0, gram), lambda: admm(weight, gram, matrix_half)):
            with pytest.raises(FloatingPointError, match="NaN or infinite"):
                solve()


class TestAdmm:
    def test_it_follows_the_paper_step_by_step(self) -> None:
        weight, x = dense_weight(6), correlated(6)
        gram = x.T @ x
        aim = (weight @ gram).numpy() + obs.ridge(x.numpy(), 0.01) * weight.numpy()
        for iterations in (1, 7, 60):
            expected, gone = obs.admm(weight.numpy(), damped(x), aim, 36, iterations)
            sparse, pruned = admm(weight, gram, matrix_half, damping=0.01, iterations=iterations)
            np.testing.assert_array_equal(pruned.numpy(), gone)
            np.testing.assert_allclose(sparse.numpy(), expected, rtol=1e-6, atol=1e-9)

    @pytest.mark.parametrize("select", [matrix_half, row_half, two_of_four])
    def test_the_mask_is_one_that_may_be_chosen(self, select: Select) -> None:
        weight, x = dense_weight(8), correlated(8)
        sparse, pruned = admm(weight, x.T @ x, select)
        assert torch.equal(pruned, select((~pruned).double()))
        assert (sparse[pruned] == 0).all()

    @pytest.mark.parametrize("select", [matrix_half, row_half, two_of_four])
    def test_it_loses_much_less_than_the_masks_of_wanda_and_sparsegpt_with_the_same_update(
        self, select: Select
    ) -> None:
        weight, x = dense_weight(9, rows=32, width=32), correlated(9, tokens=400, width=32, rank=16)
        gram = x.T @ x
        start, refined = admm(weight, gram, select)
        others = [select(weight.abs() * gram.diagonal().sqrt()), sparsegpt(weight, gram, in_parts(select), every=4)[1]]
        loss, *losses = (
            errors(weight, reconstruct(weight, pruned, gram, start=start), x).sum() for pruned in (refined, *others)
        )
        assert loss < 0.6 * min(losses)

    def test_dead_channels_go_first(self) -> None:
        weight, x = dense_weight(10), correlated(10)
        x[:, :6] = 0
        _, pruned = admm(weight, x.T @ x, matrix_half)
        assert pruned[:, :6].all()
        _, pruned = admm(weight, torch.zeros(12, 12, dtype=torch.float64), matrix_half)
        assert pruned.sum() == 36


class TestSparseGpt:
    def test_it_prunes_and_updates_as_the_surgeon_would_one_by_one(self) -> None:
        weight, x = dense_weight(11), correlated(11)
        damped_gram = (x.T @ x).numpy() + 0.01 * np.mean((x**2).sum(0).numpy()) * np.eye(12)
        update, pruned = sparsegpt(weight, x.T @ x, in_parts(matrix_half), block_size=5)
        counts = {0: (5, 15), 5: (5, 15), 10: (2, 6)}
        expected, gone = obs.sparsegpt(weight.numpy(), damped_gram, counts, per_row=False)
        np.testing.assert_array_equal(pruned.numpy(), gone)
        np.testing.assert_allclose(update.numpy(), expected, rtol=1e-8, atol=1e-10)

    def test_an_n_of_m_mask_is_chosen_when_the_sweep_reaches_it(self) -> None:
        weight, x = dense_weight(12), correlated(12)
        damped_gram = (x.T @ x).numpy() + 0.01 * np.mean((x**2).sum(0).numpy()) * np.eye(12)
        counts = {0: (4, 2), 4: (4, 2), 8: (4, 2)}
        expected, gone = obs.sparsegpt(weight.numpy(), damped_gram, counts, per_row=True)
        for block_size in (1, 4, 7, 128):
            update, pruned = sparsegpt(weight, x.T @ x, in_parts(two_of_four), every=4, block_size=block_size)
            np.testing.assert_array_equal(pruned.numpy(), gone)
            np.testing.assert_allclose(update.numpy(), expected, rtol=1e-8, atol=1e-10)

    @pytest.mark.parametrize(("run", "width"), [(None, 150), (4, 140), (6, 150), (20, 140), (40, 160)])
    def test_a_wide_matrix_is_swept_as_the_surgeon_would_in_blocks_of_any_size(
        self, run: int | None, width: int
    ) -> None:
        weight, x = dense_weight(16, rows=4, width=width), correlated(16, width=width, rank=8)
        damped_gram = (x.T @ x).numpy() + 0.01 * np.mean((x**2).sum(0).numpy()) * np.eye(width)
        spans = [min(run or 128, width - start) for start in range(0, width, run or 128)]
        counts = {start * (run or 128): (span, span // 2) for start, span in enumerate(spans)}
        expected, gone = obs.sparsegpt(weight.numpy(), damped_gram, counts, per_row=True)
        half = row_half if run is None else partial(n_of_m_mask, kept=run // 2, run=run)
        update, pruned = sparsegpt(weight, x.T @ x, in_parts(half), every=run)
        np.testing.assert_array_equal(pruned.numpy(), gone)
        np.testing.assert_allclose(update.numpy(), expected, rtol=1e-6, atol=1e-8)
        assert torch.equal(update == 0, pruned)

    def test_dead_channels_go_first_and_nothing_else_changes_with_them(self) -> None:
        weight, x = dense_weight(13), correlated(13)
        x[:, [2, 7, 8]] = 0
        quarter = partial(unstructured_mask, sparsity=0.25, group="matrix")
        update, pruned = sparsegpt(weight, x.T @ x, in_parts(quarter))
        assert pruned[:, [2, 7, 8]].all()
        assert torch.equal(update != 0, ~pruned)
        assert torch.allclose(update[~pruned], weight[~pruned])

    def test_more_damping_helps_a_gram_that_rounding_made_indefinite(self) -> None:
        weight, x = dense_weight(14), correlated(14)
        gram = x.T @ x
        values, vectors = torch.linalg.eigh(gram)
        values[0] = -0.05 * gram.diagonal().mean()
        indefinite = vectors @ torch.diag(values) @ vectors.T
        expected, _ = sparsegpt(weight, indefinite, in_parts(matrix_half), damping=0.1)
        update, _ = sparsegpt(weight, indefinite, in_parts(matrix_half), damping=0.01)
        assert torch.allclose(update, expected)

    def test_a_hopeless_gram_is_an_error_that_says_what_to_do(self) -> None:
        gram = torch.ones(12, 12, dtype=torch.float64)
        gram[0, 1] = gram[1, 0] = -1e6
        with pytest.raises(FloatingPointError, match="not positive definite, even with a damping of 10: accumulate"):
            sparsegpt(dense_weight(0), gram, in_parts(matrix_half))

    def test_the_weights_of_the_model_are_not_touched_and_their_type_is_kept(self) -> None:
        weight, x = dense_weight(15).bfloat16(), correlated(15).float()
        before = weight.clone()
        for update in (
            sparsegpt(weight, x.T @ x, in_parts(matrix_half))[0],
            reconstruct(weight, matrix_half(weight.abs()), x.T @ x),
        ):
            assert update.dtype == torch.bfloat16
        assert torch.equal(weight, before)


def test_the_mask_of_a_wide_matrix_in_float32_is_that_in_float64_without_eigenvectors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.linalg, "eigh", lambda *_: pytest.fail("cubic, and slow on a GPU"))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 256, generator=generator) * torch.rand(256, generator=generator)
    x += torch.randn(600, 1, generator=generator) * 2  # correlated, as activations are
    weight = torch.randn(64, 256, generator=generator)
    masks = [admm(weight, (x.T @ x).to(dtype), matrix_half)[1] for dtype in (torch.float32, torch.float64)]
    assert int((masks[0] != masks[1]).sum()) <= 0.002 * weight.numel()


def test_a_gram_matrix_that_rounding_has_taken_below_zero_still_has_a_mask() -> None:
    gram = torch.tensor([[1.0, 1.5], [1.5, 1.0]])
    sparse, pruned = admm(torch.tensor([[1.0, 2.0]]), gram, lambda scores: scores <= scores.min())
    assert sparse.isfinite().all()
    assert int(pruned.sum()) == 1


def test_the_error_of_a_layer_is_that_of_its_outputs() -> None:
    x, change = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[1.0, -1.0], [2.0, 0.0]])
    # Outputs differ by (-1, 2) for the first token and (-1, 0) for the second.
    assert layer_error(change, x.T @ x) == 6.0
