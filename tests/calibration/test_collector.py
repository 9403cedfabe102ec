from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from optimum_mwanda import CalibrationStatistics, MWandaConfig, MWandaPruner
from optimum_mwanda.calibration import collector
from optimum_mwanda.calibration.collector import StatisticsCollector, reduce_channels, reduce_in_place
from optimum_mwanda.calibration.statistics import WeightStatistics
from optimum_mwanda.data.chunks import build_chunks
from optimum_mwanda.modeling.blocks import find_blocks
from optimum_mwanda.modeling.weights import PrunableWeight, find_weights, flat
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


CALLS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), max_size=30)  # tensor, matrix


@settings(max_examples=60)
@given(st.lists(CALLS, min_size=1, max_size=3))
def test_matrices_that_share_sums_have_those_that_each_would_have_alone(calls: list[list[tuple[int, int]]]) -> None:
    model = make_model()
    weights = flat(find_weights(find_blocks(model), None, ()))[:7]
    generator = torch.Generator().manual_seed(0)
    inputs = [{w: torch.randn(5 + n, w, generator=generator) for w in (32, 48)} for n in range(4)]
    languages = [f"l{number}" for number in range(len(calls))]

    def collect(watched: list[PrunableWeight]) -> dict[str, WeightStatistics]:
        sums = StatisticsCollector(watched, languages, ["positive"])
        with sums:
            for language, part in zip(languages, calls, strict=True):
                sums.start(language)
                for weight in watched:
                    sums._add(weight.name, inputs[0][weight.in_features])
                for number, matrix in part:
                    if (weight := weights[matrix]) in watched:
                        sums._add(weight.name, inputs[number][weight.in_features])
        return sums.finish()

    together = collect(weights)
    for weight in weights:
        alone = collect([weight])[weight.name]
        assert torch.equal(together[weight.name].tokens, alone.tokens)
        assert torch.equal(together[weight.name].square_sum, alone.square_sum)
        assert torch.equal(together[weight.name].active["positive"], alone.active["positive"])


def test_matrices_that_read_the_same_input_hold_its_sums_once_and_are_saved_each(tmp_path: Path) -> None:
    statistics = calibrate(make_model())
    places = [entry.square_sum.data_ptr() for entry in statistics.weights.values()]
    assert (len(places), len({*places})) == (21, 12)  # per block: attention, its output, gate and up, down
    statistics.save(tmp_path / "s.safetensors")
    loaded = CalibrationStatistics.load(tmp_path / "s.safetensors")
    for name, entry in statistics.weights.items():
        assert torch.equal(loaded.weights[name].square_sum, entry.square_sum)
        assert torch.equal(loaded.weights[name].tokens, entry.tokens)


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


def test_no_copy_of_a_large_input_is_made_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "_ENTRIES", 32)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    sizes: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = function(*args, **(kwargs or {}))
            if torch.is_tensor(found) and found.untyped_storage().data_ptr() != x.untyped_storage().data_ptr():
                sizes.append(found.numel())
            return found

    with Sizes():
        reduced = reduce_channels(x, ["positive", "above_rms>0.5"])
    assert max(sizes) == 64
    rms = x.double().square().mean(1, keepdim=True).sqrt()
    assert torch.equal(reduced["positive"], (x > 0).sum(0).double())
    assert torch.equal(reduced["above_rms>0.5"], (x.double().abs() > 0.5 * rms).sum(0).double())
    torch.testing.assert_close(reduced["square_sum"], x.double().square().sum(0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("activities", [[], ["above_rms>0.5"]])
def test_the_input_stays_as_it_is(dtype: torch.dtype, activities: list[str]) -> None:
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = x.clone()
    reduced = reduce_channels(x, activities)
    assert torch.equal(x, before)
    torch.testing.assert_close(reduced["square_sum"], before.double().square().sum(0), rtol=1e-6, atol=0)


def test_low_precision_is_summed_up_in_float32() -> None:
    x = torch.full((5000, 2), 1.0, dtype=torch.bfloat16)
    for reduce in (reduce_channels, reduce_in_place):
        reduced = reduce(x, ["positive"])
        assert reduced["square_sum"].tolist() == pytest.approx([5000.0, 5000.0], rel=1e-6)
        assert reduced["positive"].tolist() == [5000.0, 5000.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_tokens_of_low_precision_are_summed_up_to_seven_digits(dtype: torch.dtype) -> None:
    x = torch.rand(50_000, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = reduce_channels(x, [])["square_sum"]
    torch.testing.assert_close(found, x.double().square().sum(0), rtol=2e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_what_gpus_do_gives_the_same_sums_without_a_copy(dtype: torch.dtype) -> None:
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[:, 3] *= 100
    activities = ["positive", "above_rms>0.5"]
    large: set[torch.dtype] = set()

    class Large(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = function(*args, **(kwargs or {}))
            if torch.is_tensor(found) and found.numel() == x.numel():
                large.add(found.dtype)
            return found

    with Large():
        found = reduce_in_place(x, activities)
    assert large == {torch.bool, dtype}
    expected = reduce_channels(x, activities)
    torch.testing.assert_close(found["square_sum"], expected["square_sum"], rtol=1e-6, atol=0)
    assert all(torch.equal(found[key], expected[key]) for key in activities)


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
