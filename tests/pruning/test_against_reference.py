"""Masks and plans equal those of the slow reference, bit for bit.

0.55 of 16, 32, 48 or 128 inputs, and of any product of two of them, is never half-way between two counts.
"""

import functools
from itertools import product

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from optimum_mwanda import MWandaConfig, MWandaPruner
from optimum_mwanda.data.chunks import build_chunks
from tests.conftest import make_model, make_rows
from tests.reference.mwanda import MatrixStats, Settings, reference_masks, reference_plan, reference_statistics

LENGTH = 8
Case = dict[str, object]
CRITERIA: list[Case] = [
    *({"criterion": name} for name in ("magnitude", "wanda", "ria")),
    *(
        {"criterion": "mwanda", "base": base, "variance": variance, "activation": activation}
        for base, variance, activation in product(
            ("wanda", "ria"), ("none", "std", "variance", "relative_variance"), ("none", "positive", "above_rms")
        )
    ),
]
ALLOCATIONS: list[Case] = [
    {"allocation": "uniform"},
    {"allocation": "owl"},
    {"allocation": "outliers", "owl_multiplier": 7.0},  # so far out, the shares of the blocks differ by factors
    {"allocation": "cwl", "cwl_direction": "shared"},
    {"allocation": "cwl", "cwl_direction": "specific"},
]
# Strong terms, so that each of them changes masks; thresholds at which some channels are active and some are not.
COMMON: dict[str, object] = {
    "sparsity": 0.55,
    "ria_exponent": 0.5,
    "variance_weight": 2.0,
    "activation_threshold": 0.7,
    "activation_exponent": 1.0,
    "owl_multiplier": 2.0,
    "allocation_strength": 0.1,
    "language_temperature": 2.0,
    "batch_size": 2,
}
# Unequal tokens per language; a row is one chunk.
ROWS = [
    row
    for index, (language, count) in enumerate([("en", 2), ("fr", 3), ("sw", 1)])
    for row in make_rows("en fr sw", rows=count, length=LENGTH, seed=index)
    if row["language"] == language
]


def both_settings(**settings: object) -> tuple[MWandaConfig, Settings]:
    values = {"group": "row", "variance": "none", "base": "wanda", "allocation": "uniform", **COMMON, **settings}
    if "pattern" in values:
        values.update(sparsity=None, allocation=None)
    config = MWandaConfig(**values, sequence_length=LENGTH, samples_per_language=3)
    return config, Settings(**{**values, "sparsity": config.target_sparsity, "allocation": config.allocation})


def token_ids(model: PreTrainedModel, config: MWandaConfig) -> dict[str, torch.Tensor]:
    """Calibration chunks of every language, `(chunks, tokens)`."""
    return {language: part["input_ids"] for language, (part,) in build_chunks(ROWS, config, model).chunks.items()}


def pruned_entries(model: PreTrainedModel, name: str) -> np.ndarray:
    module = model.get_submodule(name)
    weight = module.weight.detach()
    return ((weight.T if isinstance(module, Conv1D) else weight) == 0).numpy()


def assert_equal_masks(family: str = "llama", **settings: object) -> None:
    config, reference = both_settings(**settings)
    model = make_model(family)
    chunks = token_ids(model, config)
    assert {language: len(ids) for language, ids in chunks.items()} == {"en": 2, "fr": 3, "sw": 1}
    kept = reference_masks(model, chunks, reference, dense_statistics(family, str(settings.get("activation", "none"))))
    MWandaPruner(config, progress=False).prune(model, ROWS)
    assert len(kept) == {"llama": 21, "qwen3": 21, "gpt2": 12}[family]
    different = {name: int((pruned_entries(model, name) == mask).sum()) for name, mask in kept.items()}
    assert not any(different.values()), different


@functools.cache
def dense_statistics(family: str, activation: str) -> dict[str, MatrixStats]:
    """What the reference sums up in the unpruned model, which depends on no other setting that is tried here."""
    config, reference = both_settings(criterion="mwanda", activation=activation)
    model = make_model(family)
    return reference_statistics(model, token_ids(model, config), reference)


def every_three_together(criteria: list[Case], allocations: list[Case]) -> list[tuple[Case, Case, str, str]]:
    """Half of all combinations, among which any three of criterion, allocation, calibration and group are together."""
    return [
        (criterion, allocation, calibration, group)
        for (i, criterion), (j, allocation) in product(enumerate(criteria), enumerate(allocations))
        for k, calibration in enumerate(("dense", "sequential"))
        for m, group in enumerate(("row", "matrix"))
        if (i + j + k + m) % 2 == 0
    ]


def _name(value: object) -> str:
    return "-".join(map(str, value.values())) if isinstance(value, dict) else str(value)


@pytest.mark.parametrize(
    ("criterion", "allocation", "calibration", "group"), every_three_together(CRITERIA, ALLOCATIONS), ids=_name
)
def test_masks_equal_the_reference(
    criterion: dict[str, object], allocation: dict[str, object], calibration: str, group: str
) -> None:
    assert_equal_masks(**criterion, **allocation, calibration=calibration, group=group)


@pytest.mark.parametrize("calibration", ["dense", "sequential"])
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8", "3:16"])
def test_n_of_m_masks_equal_the_reference(pattern: str, calibration: str) -> None:
    assert_equal_masks(criterion="mwanda", base="ria", variance="std", pattern=pattern, calibration=calibration)


@pytest.mark.parametrize("allocation", ["owl", "cwl"])
@pytest.mark.parametrize(
    "weights", ["equal", "proportional", "temperature", {"en": 3.0, "sw": 0.5}, {"fr": 0.0}], ids=str
)
def test_language_weights_equal_the_reference(weights: str | dict[str, float], allocation: str) -> None:
    assert_equal_masks(
        criterion="mwanda", variance="std", activation="positive", language_weights=weights, allocation=allocation
    )


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
@pytest.mark.parametrize(
    "settings",
    [
        {"criterion": "magnitude", "group": "matrix"},
        {"criterion": "wanda", "allocation": "owl"},
        {"criterion": "ria", "allocation": "cwl", "calibration": "sequential"},
        {"criterion": "mwanda", "base": "ria", "variance": "std", "activation": "above_rms", "group": "matrix"},
        {"criterion": "mwanda", "variance": "relative_variance", "calibration": "sequential", "allocation": "owl"},
        {"criterion": "wanda", "pattern": "2:4"},
    ],
    ids=_name,
)
def test_other_families_equal_the_reference(family: str, settings: dict[str, object]) -> None:
    assert_equal_masks(family, **settings)


@pytest.mark.parametrize("bounds", [(0.0, 0.95), (0.53, 0.95), (0.0, 0.57), (0.55, 0.55)])
@pytest.mark.parametrize("allocation", ALLOCATIONS, ids=_name)
def test_plans_equal_the_reference(allocation: dict[str, object], bounds: tuple[float, float]) -> None:
    config, reference = both_settings(
        criterion="wanda", **allocation, min_block_sparsity=bounds[0], max_block_sparsity=bounds[1]
    )
    model = make_model()
    pruner = MWandaPruner(config, progress=False)
    plan = pruner.allocate(model, pruner.calibrate(model, ROWS))
    expected = reference_plan(model, token_ids(model, config), reference)
    # The library squares and sums a batch in float32, and the spread of the correlations here is a few thousandths.
    assert [block.sparsity for block in plan.blocks] == pytest.approx(expected, abs=1e-7)
    assert (len(set(expected)) > 1) == (allocation["allocation"] != "uniform" and bounds != (0.55, 0.55))


def test_every_setting_above_changes_the_masks() -> None:
    """Otherwise the equalities above would say little."""
    masks: dict[bytes, dict[str, object]] = {}
    for settings in (
        *CRITERIA,
        *({"criterion": "wanda", **allocation} for allocation in ALLOCATIONS[1:]),
        {"criterion": "wanda", "calibration": "sequential"},
        {"criterion": "wanda", "group": "matrix"},
        {"criterion": "wanda", "language_weights": "proportional"},
    ):
        if settings.get("variance") == settings.get("activation") == "none":
            continue  # this is Wanda or RIA itself
        model = make_model()
        MWandaPruner(both_settings(**settings)[0], progress=False).prune(model, ROWS)
        key = b"".join((p == 0).numpy().tobytes() for p in model.parameters())
        assert key not in masks, (settings, masks[key])
        masks[key] = settings
