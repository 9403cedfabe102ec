"""Training what pruning has left, computed by hand."""

import math
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from optimum_mwanda.pruning.tuning import Choice, Group, Kept, Outcome, tune

AIMS = (torch.tensor([[2.0, 5.0, 0.0]]), torch.tensor([[4.0, 5.0, 0.0]]))


def gradients(values: Mapping[str, Tensor], batch: int) -> list[Tensor]:
    return [values["w"].detach() - AIMS[batch]]


def error(values: Mapping[str, Tensor]) -> float:
    return float((values["w"] - 3)[0, 0].abs())


def run(
    start: list[float], epochs: int = 1, batches: Sequence[int] = (0,), rate: float = 0.5
) -> tuple[Tensor, Outcome]:
    weight = torch.tensor([start])
    options = {"epochs": epochs, "learning_rate": rate, "seed": 0}
    found, outcome = tune({"w": weight}, Kept({"w": weight}, {"w": weight != 0}), gradients, error, batches, **options)
    assert torch.equal(weight, torch.tensor([start]))
    return found["w"], outcome


def test_the_first_step_of_adam_is_as_long_as_the_learning_rate() -> None:
    values, outcome = run([1.0, 0.0, -1.0])
    assert values[0].tolist() == pytest.approx([1.5, 0.0, -0.5])
    assert values[0, 1] == 0
    assert outcome == (1, 2.0, pytest.approx(1.5))


def test_the_second_step_is_half_as_long_as_the_cosine_says() -> None:
    """Gradients −1 and −0.5: the means are 0.95 and 0.545, corrected for their start, and the root of 0.001·1.249."""
    values, outcome = run([1.0, 0.0, -1.0], epochs=2)
    mean, square = (0.9 * 0.1 + 0.1 * 0.5) / (1 - 0.9**2), (0.999 * 0.001 + 0.001 * 0.25) / (1 - 0.999**2)
    expected = 1.5 + 0.5 * (1 + math.cos(math.pi / 2)) / 2 * mean / math.sqrt(square)
    assert values[0, 0].item() == pytest.approx(expected, rel=1e-6)
    assert outcome == (2, 2.0, pytest.approx(3 - expected))


def test_the_best_epoch_is_kept_and_not_the_last() -> None:
    values, outcome = run([2.9, 0.0, 1.0], epochs=5, batches=(1,), rate=0.09)
    assert outcome.epoch == 1
    assert outcome.after == pytest.approx(0.01, abs=1e-6)
    assert values[0, 0].item() == pytest.approx(2.99)


def test_without_a_better_epoch_the_start_is_kept() -> None:
    values, outcome = run([3.0, 0.0, 1.0], epochs=3)
    assert outcome == (0, 0.0, 0.0)
    assert values.tolist() == [[3.0, 0.0, 1.0]]


def test_an_error_that_is_not_finite_is_not_trained_away() -> None:
    def fail(*_: object) -> list[Tensor]:
        raise AssertionError

    weight = {"w": torch.ones(1, 1)}
    found, outcome = tune(
        weight, Kept(weight, weight), fail, lambda _: math.nan, [0], epochs=2, learning_rate=1, seed=0
    )
    assert found == weight
    assert outcome.epoch == 0
    assert math.isnan(outcome.before)


def test_epochs_that_end_in_nan_are_not_kept() -> None:
    weight = {"w": torch.ones(1, 1)}
    options = {"epochs": 2, "learning_rate": 1, "seed": 0}
    nan = [torch.full((1, 1), math.nan)]
    found, outcome = tune(
        weight, Kept(weight, {"w": weight["w"] != 0}), lambda *_: nan, lambda v: float(v["w"]), [0], **options
    )
    assert found["w"].item() == 1
    assert outcome == (0, 1.0, 1.0)


def test_values_are_trained_in_float32_and_judged_as_they_are_stored() -> None:
    weight = {"w": torch.tensor([[1.0]], dtype=torch.bfloat16)}
    seen = []

    def judge(values: Mapping[str, Tensor]) -> float:
        seen.append((values["w"].dtype, values["w"].item()))
        return -values["w"].item()

    def pull(values: Mapping[str, Tensor], _: int) -> list[Tensor]:
        assert values["w"].dtype == torch.float32
        return [torch.full((1, 1), -1.0)]

    options = {"epochs": 4, "learning_rate": 3e-3, "seed": 0}
    found, outcome = tune(weight, Kept(weight, {"w": weight["w"] != 0}), pull, judge, [0], **options)
    assert {dtype for dtype, _ in seen} == {torch.bfloat16}
    assert seen[1][1] == 1.0  # the first step alone is lost in rounding, and is not lost with the others
    assert found["w"].item() == 1.0078125
    assert found["w"].dtype == torch.bfloat16
    assert outcome.epoch > 1


def test_the_order_of_batches_comes_from_the_seed_alone() -> None:
    def order(seed: int) -> list[int]:
        numbers: list[int] = []

        def noting(_: Mapping[str, Tensor], batch: int) -> list[Tensor]:
            numbers.append(batch)
            return [torch.zeros(1, 1)]

        weight = {"w": torch.ones(1, 1)}
        tune(
            weight,
            Kept(weight, {"w": weight["w"] != 0}),
            noting,
            lambda _: 0.0,
            [3, 5, 8, 9, 11, 12],
            epochs=2,
            learning_rate=1,
            seed=seed,
        )
        return numbers

    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = order(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert one == order(0) != order(1)
    assert sorted(one[:6]) == sorted(one[6:]) == [3, 5, 8, 9, 11, 12]
    assert one[:6] != one[6:]


def chosen(
    dense: Tensor, kept: Tensor, groups: Sequence[Group], aim: Tensor, epochs: int, rate: float
) -> tuple[Tensor, Outcome]:
    choice = Choice({"w": dense}, {"w": kept}, groups)
    return_to_aim = {
        "gradients": lambda values, _: [values["w"].detach() - aim],
        "error": lambda values: float((values["w"] - aim).square().sum()),
    }
    start = {"w": torch.where(kept, dense, 0)}
    found, outcome = tune(start, choice, **return_to_aim, batches=[0], epochs=epochs, learning_rate=rate, seed=0)
    return found["w"], outcome


def test_a_weight_takes_the_place_of_another_when_their_scores_have_met() -> None:
    """Scores 0.717, −0.717 and −1.05. The steps of Adam are 0.6 long, then 0.3, for gradients that stay the same."""
    dense, kept = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[True, False, False]])
    groups = [Group("w", lambda tensor: tensor, 3)]
    aim = torch.tensor([[0.0, 2.0, 0.0]])
    assert chosen(dense, kept, groups, aim, 1, 0.6) == (pytest.approx(torch.tensor([[3.0, 0.0, 0.0]])), (0, 13.0, 13.0))
    found, outcome = chosen(dense, kept, groups, aim, 2, 0.6)
    assert found.tolist() == aim.tolist()
    assert outcome == (2, 13.0, 0.0)


@pytest.mark.parametrize("size", [2, 4, 12])
def test_as_many_entries_of_a_group_stay_and_none_changes_its_value(size: int) -> None:
    torch.manual_seed(0)
    stacked, aim = torch.randn(2, 4, 3), torch.zeros(2, 4, 3)
    kept = torch.zeros(2, 4, 3, dtype=torch.bool)

    def view(tensor: Tensor) -> Tensor:
        """The second of two matrices, which lies there transposed."""
        return tensor[1].T

    for mask, values in ((kept, torch.ones(3, 4)), (aim, view(stacked))):
        stays = torch.rand(12 // size, size).argsort(1) < size // 2
        view(mask).copy_(stays.view(3, 4) * values)
    found, outcome = chosen(
        stacked, kept | (torch.arange(2) == 0).view(2, 1, 1), [Group("w", view, size)], aim, 20, 0.3
    )
    assert torch.equal(found[0], stacked[0])
    stays = view(found) != 0
    assert torch.equal(view(found)[stays], view(stacked)[stays])
    assert stays.reshape(-1, size).sum(1).tolist() == [size // 2] * (12 // size)
    assert outcome.epoch > 0
    assert outcome.after < outcome.before
