"""Scores by hand.

One matrix, two languages of weight 1/2 each:

    |W| = 1 2 0 1    column sums c = 4 4 8 4        R = |W| / c + |W| / q = 1/2  1    0  1/2
          1 0 4 3    row sums    q = 4 8 8                                  3/8  0    1  9/8
          2 2 4 0                                                           3/4  3/4  1  0

    r  = 1 2 0 14  and  7 2 0 2         (the root mean squares, so m is their square)
    n² = (1 + 49)/2, (4 + 4)/2, 0, (196 + 4)/2      n = 5 2 0 10
    r̄  = 4 2 0 8                                    v = 9 0 0 36

    n' with λ = 1/2:    std 5 + 3/2, 2, 0, 10 + 3  |  variance 5 + 9/2, 2, 0, 10 + 18
                        relative_variance 5 + 9/10, 2, 0, 10 + 36/20
    n' with ria_exponent a = 2 is squared.

    T = 10 50;  p_j = (5 a¹_j + a²_j) / 100;  β = 1/2:
    positive   a¹ = 10 1 0 4,  a² = 50 20 0 16:    p = 1 .25 0 .36     √p = 1 .5 0 .6
    above_rms  a¹ = 1 10 0 9,  a² = 20 50 0 36:    p = .25 1 0 .81     √p = .5 1 0 .9
"""

import pytest
import torch
from torch import Tensor

from optimum_mwanda import MWandaConfig
from optimum_mwanda.calibration.statistics import WeightStatistics
from optimum_mwanda.pruning.criteria import (
    VARIANCE_TERMS,
    activation_probability,
    cross_lingual_norm,
    cross_lingual_variance,
    pooled_norm,
    ria_scores,
    wanda_scores,
)
from optimum_mwanda.pruning.scoring import weigh_languages
from optimum_mwanda.registry import CRITERIA

W = torch.tensor([[1.0, -2, 0, 1], [-1, 0, 4, -3], [2, 2, -4, 0]])
RMS = torch.tensor([[1.0, 2, 0, 14], [7, 2, 0, 2]], dtype=torch.float64)
HALVES = torch.tensor([0.5, 0.5], dtype=torch.float64)
TOKENS = torch.tensor([10, 50])
POSITIVE = torch.tensor([[10.0, 1, 0, 4], [50, 20, 0, 16]], dtype=torch.float64)
ABOVE_RMS = torch.tensor([[1.0, 10, 0, 9], [20, 50, 0, 36]], dtype=torch.float64)
ENTRY = WeightStatistics(
    TOKENS,
    RMS.square() * TOKENS[:, None],
    {"positive": POSITIVE, "above_rms>0.1": ABOVE_RMS, "above_rms>3.0": POSITIVE},
)


def scores(
    weight: Tensor = W, entry: WeightStatistics = ENTRY, languages: Tensor = HALVES, **settings: object
) -> Tensor:
    config = MWandaConfig(**{"ria_exponent": 2.0, "variance_weight": 0.5, **settings})
    score = CRITERIA[config.criterion].score
    assert score is not None
    return score(weight, entry, languages, config)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"criterion": "magnitude"}, [[1, 2, 0, 1], [1, 0, 4, 3], [2, 2, 4, 0]]),
        # |W| · (5 2 0 10)
        ({"criterion": "wanda"}, [[5, 4, 0, 10], [5, 0, 0, 30], [10, 4, 0, 0]]),
        # R · (25 4 0 100)
        ({"criterion": "ria"}, [[12.5, 4, 0, 50], [9.375, 0, 0, 112.5], [18.75, 3, 0, 0]]),
        # |W| · n'
        ({"base": "wanda", "variance": "none"}, [[5, 4, 0, 10], [5, 0, 0, 30], [10, 4, 0, 0]]),
        # |W| · (6.5 2 0 13)
        ({"base": "wanda", "variance": "std"}, [[6.5, 4, 0, 13], [6.5, 0, 0, 39], [13, 4, 0, 0]]),
        # |W| · (9.5 2 0 28)
        ({"base": "wanda", "variance": "variance"}, [[9.5, 4, 0, 28], [9.5, 0, 0, 84], [19, 4, 0, 0]]),
        # |W| · (5.9 2 0 11.8)
        (
            {"base": "wanda", "variance": "relative_variance"},
            [[5.9, 4, 0, 11.8], [5.9, 0, 0, 35.4], [11.8, 4, 0, 0]],
        ),
        # |W| · (6.5 2 0 13) · (1 .5 0 .6)
        (
            {"base": "wanda", "variance": "std", "activation": "positive"},
            [[6.5, 2, 0, 7.8], [6.5, 0, 0, 23.4], [13, 2, 0, 0]],
        ),
        # |W| · (5 2 0 10) · (.5 1 0 .9)
        (
            {"base": "wanda", "variance": "none", "activation": "above_rms"},
            [[2.5, 4, 0, 9], [2.5, 0, 0, 27], [5, 4, 0, 0]],
        ),
        # |W| · (5 2 0 10) · p, as β = 1 and at the threshold 3 the counts are those of positive
        (
            {
                "base": "wanda",
                "variance": "none",
                "activation": "above_rms",
                "activation_threshold": 3.0,
                "activation_exponent": 1.0,
            },
            [[5, 1, 0, 3.6], [5, 0, 0, 10.8], [10, 1, 0, 0]],
        ),
        # R · (5 2 0 10)²
        ({"base": "ria", "variance": "none"}, [[12.5, 4, 0, 50], [9.375, 0, 0, 112.5], [18.75, 3, 0, 0]]),
        # R · (6.5 2 0 13)² = R · (42.25 4 0 169)
        (
            {"base": "ria", "variance": "std"},
            [[21.125, 4, 0, 84.5], [15.84375, 0, 0, 190.125], [31.6875, 3, 0, 0]],
        ),
        # R · (9.5 2 0 28)² = R · (90.25 4 0 784)
        (
            {"base": "ria", "variance": "variance"},
            [[45.125, 4, 0, 392], [33.84375, 0, 0, 882], [67.6875, 3, 0, 0]],
        ),
        # R · (5.9 2 0 11.8)² = R · (34.81 4 0 139.24)
        (
            {"base": "ria", "variance": "relative_variance"},
            [[17.405, 4, 0, 69.62], [13.05375, 0, 0, 156.645], [26.1075, 3, 0, 0]],
        ),
        # R · (42.25 4 0 169) · (1 .5 0 .6): the exponent of RIA does not touch the probability
        (
            {"base": "ria", "variance": "std", "activation": "positive"},
            [[21.125, 2, 0, 50.7], [15.84375, 0, 0, 114.075], [31.6875, 1.5, 0, 0]],
        ),
        # R · (25 4 0 100) · (.5 1 0 .9)
        (
            {"base": "ria", "variance": "none", "activation": "above_rms"},
            [[6.25, 4, 0, 45], [4.6875, 0, 0, 101.25], [9.375, 3, 0, 0]],
        ),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_scores_equal_those_computed_by_hand(settings: dict[str, object], expected: list[list[float]]) -> None:
    actual = scores(**settings)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float32), rtol=3e-7, atol=0)


def test_unequal_language_weights_enter_norm_variance_and_probability() -> None:
    shares = torch.tensor([0.75, 0.25], dtype=torch.float64)
    mean_square = torch.tensor([[4.0], [16.0]], dtype=torch.float64)  # r = 2, 4 and r̄ = 2.5
    assert pooled_norm(mean_square, shares).item() == pytest.approx(7**0.5, rel=1e-15)  # 3 + 4
    assert cross_lingual_variance(mean_square, shares).item() == pytest.approx(0.75, rel=1e-15)  # 3/16 + 9/16
    active = torch.tensor([[4.0], [40.0]])
    assert activation_probability(active, TOKENS, shares).item() == pytest.approx(0.5, rel=1e-15)  # .75·.4 + .25·.8


@pytest.mark.parametrize(
    ("rule", "tokens", "expected"),
    [
        ("equal", (10, 30), (0.5, 0.5)),
        ("proportional", (10, 30), (0.25, 0.75)),
        ("temperature", (100, 900), (0.25, 0.75)),  # square roots, 10 and 30
        ({"fr": 4.0}, (10, 30), (0.2, 0.8)),  # en is not named and weighs 1
        ({"en": 0.0}, (10, 30), (0.0, 1.0)),
    ],
)
def test_language_weights_follow_the_rule_and_sum_to_one(
    rule: str | dict[str, float], tokens: tuple[int, int], expected: tuple[float, float]
) -> None:
    config = MWandaConfig(language_weights=rule, language_temperature=2.0)
    weights = weigh_languages(config, dict(zip(("en", "fr"), tokens, strict=True)))
    assert weights.dtype == torch.float64
    assert weights.tolist() == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    ("rule", "message"), [({"de": 1.0}, "'de'.*en, fr"), ({"en": 0, "fr": 0}, "every calibrated language the weight 0")]
)
def test_language_weights_that_fit_no_language_are_refused(rule: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weigh_languages(MWandaConfig(language_weights=rule), {"en": 1, "fr": 1})


def test_proportional_weights_give_the_norm_of_all_tokens_together() -> None:
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randn(length, 6, generator=generator, dtype=torch.float64) for length in (5, 20)]
    mean_square = torch.stack([x.square().mean(0) for x in texts])
    together = torch.cat(texts).square().mean(0).sqrt()
    torch.testing.assert_close(pooled_norm(mean_square, torch.tensor([0.2, 0.8], dtype=torch.float64)), together)


@pytest.mark.parametrize("form", VARIANCE_TERMS)
def test_languages_that_agree_add_nothing_to_the_norm(form: str) -> None:
    mean_square = torch.tensor([[4.0, 9.0, 0.0]], dtype=torch.float64).repeat(2, 1)
    assert cross_lingual_norm(mean_square, HALVES, form, 3.0).tolist() == [2, 3, 0]


@pytest.mark.parametrize("form", ["none", "std", "relative_variance"])
def test_the_cross_lingual_norm_is_in_the_unit_of_the_activations(form: str) -> None:
    scaled = cross_lingual_norm(RMS.square() * 16, HALVES, form, 0.5)
    torch.testing.assert_close(scaled, 4 * cross_lingual_norm(RMS.square(), HALVES, form, 0.5), rtol=1e-14, atol=0)


def test_the_literal_variance_grows_faster_than_the_norm() -> None:
    # 4 · 5 + 16 · 9/2 = 92 where four times the unscaled 9.5 is 38
    scaled = cross_lingual_norm(RMS.square() * 16, HALVES, "variance", 0.5)
    torch.testing.assert_close(scaled, torch.tensor([92.0, 8, 0, 328], dtype=torch.float64))


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({"criterion": "magnitude"}, 8),
        ({"criterion": "wanda"}, 8),
        ({"criterion": "mwanda", "base": "wanda"}, 8),
        ({"criterion": "ria"}, 1),  # relative importance has no unit
        ({"criterion": "mwanda", "base": "ria"}, 1),
    ],
)
def test_how_scores_scale_with_the_weights(settings: dict[str, str], factor: int) -> None:
    assert torch.equal(scores(8 * W, **settings), factor * scores(**settings))


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_ria_scales_with_a_power_of_the_activations(exponent: float) -> None:
    louder = WeightStatistics(TOKENS, ENTRY.square_sum * 16, {})
    settings = {"criterion": "ria", "ria_exponent": exponent}
    torch.testing.assert_close(scores(entry=louder, **settings), 4**exponent * scores(**settings), rtol=3e-7, atol=0)


def test_the_order_of_the_languages_does_not_matter() -> None:
    shares = torch.tensor([0.3, 0.7], dtype=torch.float64)
    flipped = WeightStatistics(TOKENS.flip(0), ENTRY.square_sum.flip(0), {"positive": POSITIVE.flip(0)})
    settings = {"variance": "std", "activation": "positive"}
    torch.testing.assert_close(
        scores(entry=flipped, languages=shares.flip(0), **settings), scores(languages=shares, **settings)
    )


def test_rows_and_columns_of_zeros_score_zero() -> None:
    weight = torch.tensor([[0.0, 0, 0, 0], [0, 1, 2, 3], [0, -3, 2, 1]])
    for actual in (ria_scores(weight, torch.ones(4)), wanda_scores(weight, torch.ones(4))):
        assert actual.isfinite().all()
        assert torch.equal(actual == 0, weight == 0)
    assert torch.equal(ria_scores(torch.zeros(2, 3), torch.ones(3)), torch.zeros(2, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "ria", "mwanda"])
def test_scores_are_float32_whatever_the_weights_are(criterion: str, dtype: torch.dtype) -> None:
    actual = scores(W.to(dtype), criterion=criterion)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, scores(criterion=criterion))  # the weights above are exact in every dtype


def test_scoring_leaves_the_weight_alone() -> None:
    before = W.clone()
    for criterion in ("magnitude", "wanda", "ria", "mwanda"):
        scores(criterion=criterion)
    assert torch.equal(before, W)
