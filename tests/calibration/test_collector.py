from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from optimum_mwanda import CalibrationStatistics, MWandaConfig, MWandaPruner
from optimum_mwanda.calibration.collector import reduce_channels
from optimum_mwanda.data.chunks import build_chunks
from tests.conftest import FAMILIES, assert_untouched, make_model, make_rows, state_of

Inputs = dict[str, dict[str, np.ndarray]]
POSITIVE = MWandaConfig(activation="positive", sequence_length=16, batch_size=2)
ABOVE_RMS = MWandaConfig(activation="above_rms", activation_threshold=0.25)


def calibrate(model: PreTrainedModel, rows: Any = None, **settings: Any) -> CalibrationStatistics:
    config = MWandaConfig(**{"sequence_length": 16, "activation": "positive"} | settings)
    return MWandaPruner(config, progress=False).calibrate(model, rows or make_rows())


def captured_inputs(model: PreTrainedModel, names: list[str], config: MWandaConfig, rows: Any) -> Inputs:
    """What enters each module in a plain forward pass over the chunks, as float32 arrays `(tokens, in)`."""
    inputs: dict[str, dict[str, list[np.ndarray]]] = {name: defaultdict(list) for name in names}
    for language, batch in build_chunks(rows, config, model).batches(config.batch_size):
        handles = [
            model.get_submodule(name).register_forward_pre_hook(
                lambda _, args, kept=inputs[name][language]: kept.append(args[0].flatten(0, -2).numpy().copy())
            )
            for name in names
        ]
        with torch.no_grad():
            model.eval()(**batch)
        for handle in handles:
            handle.remove()
    return {
        name: {language: np.concatenate(parts) for language, parts in by_language.items()}
        for name, by_language in inputs.items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_sums_and_counts_are_those_of_the_inputs_of_each_matrix(family: str) -> None:
    model, rows = make_model(family), make_rows(length=45)
    statistics = MWandaPruner(POSITIVE, progress=False).calibrate(model, rows, also_for=[ABOVE_RMS])
    inputs = captured_inputs(model, list(statistics.weights), POSITIVE, rows)
    assert statistics.languages == ("en", "fr", "sw")
    assert statistics.activities == ("above_rms>0.25", "positive")
    assert len(statistics.weights) == {"llama": 21, "qwen3": 21, "gpt2": 12}[family]
    for name, entry in statistics.weights.items():
        for row, language in enumerate(statistics.languages):
            x = inputs[name][language]
            rms = np.sqrt(np.square(x).mean(1, keepdims=True))
            assert entry.tokens[row] == len(x) == statistics.tokens[language]
            np.testing.assert_allclose(entry.square_sum[row], np.square(x, dtype=np.float64).sum(0), rtol=1e-6)
            np.testing.assert_allclose(entry.mean_square[row], np.square(x, dtype=np.float64).mean(0), rtol=1e-6)
            np.testing.assert_array_equal(entry.active["positive"][row], (x > 0).sum(0))
            np.testing.assert_array_equal(entry.active["above_rms>0.25"][row], (np.abs(x) > 0.25 * rms).sum(0))


def test_reduction_of_a_small_tensor() -> None:
    x = torch.tensor([[[3.0, -4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], [[1.0, 1.0, 1.0, -1.0], [0.0, 2.0, 0.0, 0.0]]])
    reduced = reduce_channels(x, ["positive", "above_rms>0.9", "above_rms>1"])
    assert {key: value.tolist() for key, value in reduced.items()} == {
        "square_sum": [10.0, 21.0, 1.0, 1.0],
        "positive": [2.0, 2.0, 1.0, 0.0],
        "above_rms>0.9": [2.0, 3.0, 1.0, 1.0],
        "above_rms>1": [1.0, 2.0, 0.0, 0.0],
    }


def test_low_precision_is_summed_up_in_float32() -> None:
    x = torch.full((5000, 2), 1.0, dtype=torch.bfloat16)
    reduced = reduce_channels(x, ["positive"])
    assert reduced["square_sum"].tolist() == reduced["positive"].tolist() == [5000.0, 5000.0]


def test_sums_are_float64_and_counts_whole() -> None:
    for entry in calibrate(make_model().bfloat16()).weights.values():
        assert entry.square_sum.dtype == entry.active["positive"].dtype == torch.float64
        assert torch.equal(entry.active["positive"], entry.active["positive"].round())
        assert entry.tokens.dtype == torch.int64


def test_batch_size_changes_sums_by_rounding_alone() -> None:
    model = make_model()
    one, many = (calibrate(model, batch_size=size) for size in (1, 5))
    for name, entry in one.weights.items():
        torch.testing.assert_close(entry.square_sum, many.weights[name].square_sum, rtol=1e-6, atol=0)
        assert torch.equal(entry.tokens, many.weights[name].tokens)


def test_activity_is_counted_only_for_settings_that_need_it() -> None:
    assert calibrate(make_model(), activation="none").activities == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_calibration_leaves_the_model_as_it_was(family: str) -> None:
    model = make_model(family)
    before = state_of(model)
    calibrate(model)
    assert_untouched(model, before)
    model.eval()
    calibrate(model)
    assert_untouched(model, before, training=False)


def test_dropout_is_off_during_calibration() -> None:
    model = make_model("gpt2")
    first, second = calibrate(model), calibrate(model)
    assert all(torch.equal(entry.square_sum, second.weights[name].square_sum) for name, entry in first.weights.items())


@pytest.mark.parametrize("language", ["en", "fr", "sw"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activation_that_is_not_finite_names_weight_block_and_language(language: str, value: float) -> None:
    model, rows = make_model(), make_rows(length=32)
    with torch.no_grad():
        model.model.embed_tokens.weight[90] = value
    rows.append({"language": language, "input_ids": [90] * 16})
    before = {name: tensor for name, tensor in state_of(model).items() if "embed" not in name}
    with pytest.raises(FloatingPointError, match=f"'model.layers.0.*block 'model.layers.0'.*language '{language}'"):
        calibrate(model, rows)
    assert_untouched(model, before)


def test_interrupted_calibration_leaves_the_model_as_it_was() -> None:
    model = make_model()
    before = state_of(model)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = model.model.layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        calibrate(model)
    handle.remove()
    assert_untouched(model, before)
