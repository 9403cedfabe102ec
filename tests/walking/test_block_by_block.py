"""Refinement and reconstruction inside a model, against what enters each weight in the finished model."""

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from optimum_mwanda import MWandaConfig, MWandaPruner
from optimum_mwanda.data.chunks import build_chunks
from optimum_mwanda.modeling.blocks import find_blocks, inference_mode, run_blocks
from optimum_mwanda.modeling.inputs import watch_inputs
from optimum_mwanda.modeling.weights import find_weights
from tests.conftest import make_rows
from tests.families.matrix import FAMILIES
from tests.reference import obs

Array = np.ndarray
ROWS = make_rows(rows=4, length=48)
PAIRS = [{**row, "labels": row["input_ids"][::-1]} for row in ROWS]


def settings(**values: Any) -> MWandaConfig:
    return MWandaConfig(**{"sequence_length": 48, "batch_size": 3, "sparsity": 0.6, "group": "matrix", **values})


def make(family: str) -> PreTrainedModel:
    """A random model whose layers weigh about as much as its residual stream, as those of trained ones do."""
    model = FAMILIES[family].make()
    with torch.no_grad():
        for found in find_weights(find_blocks(model)).values():
            for weight in found:
                weight.matrix.mul_(6)
    return model


def prune(family: str, **values: Any) -> PreTrainedModel:
    model = make(family)
    rows = PAIRS if model.config.is_encoder_decoder else ROWS
    return MWandaPruner(settings(**values), progress=False).prune(model, rows)


def matrices(model: PreTrainedModel) -> dict[str, Tensor]:
    return {w.name: w.matrix.clone() for found in find_weights(find_blocks(model)).values() for w in found}


def activations(model: PreTrainedModel) -> dict[str, Array]:
    """What enters each weight, the tokens of every language scaled so that it counts a third of the sum of squares."""
    blocks = find_blocks(model)
    weights = [w for found in find_weights(blocks).values() for w in found]
    seen: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    chunks = build_chunks(PAIRS if model.config.is_encoder_decoder else ROWS, settings(), model)
    for language, inputs in chunks.batches(3):
        with (
            inference_mode(model),
            watch_inputs(weights, lambda name, x, to=language: seen[name][to].append(x.flatten(0, -2).double())),
        ):
            run_blocks(model, blocks, inputs)
    pooled = {}
    for name, languages in seen.items():
        parts = [torch.cat(tokens).numpy() for tokens in languages.values()]
        pooled[name] = np.concatenate([x / np.sqrt(3 * np.square(x).sum()) for x in parts])
    return pooled


def error(change: Tensor, x: Array) -> float:
    return float(np.square(x @ change.double().numpy().T).sum())


SETTINGS = {
    "obs": {"reconstruction": "obs"},
    "obs on wanda per row": {"reconstruction": "obs", "criterion": "wanda", "group": "row", "allocation": "uniform"},
    "obs after swaps": {"reconstruction": "obs", "refinement": "swap"},
    "obs 2:4": {"reconstruction": "obs", "pattern": "2:4", "sparsity": None},
    "alps": {"criterion": "alps"},
}


@pytest.mark.parametrize("calibration", ["sequential", "dense"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "m2m_100"])
@pytest.mark.parametrize("name", SETTINGS)
def test_values_are_the_least_squares_on_what_enters_each_weight(name: str, family: str, calibration: str) -> None:
    """All that comes before a weight is finished when it is solved: sequentially it has seen what it will see."""
    dense = make(family)
    before, model = matrices(dense), prune(family, calibration=calibration, **SETTINGS[name])
    after, inputs = matrices(model), activations(model if calibration == "sequential" else dense)
    for weight, solved in after.items():
        x, old, pruned = inputs[weight], before[weight].double().numpy(), (solved == 0).numpy()
        best = obs.least_squares(old, pruned, x, 0.1, x @ old.T)
        ridge = obs.ridge(x, 0.1)

        def objective(values: Array, x: Array = x, old: Array = old, ridge: float = ridge) -> float:
            kept = values != 0
            return float(np.square(x @ (values - old).T).sum() + ridge * np.square((values - old)[kept]).sum())

        masked, reached = np.where(pruned, 0, old), solved.double().numpy()
        assert objective(reached) - objective(best) <= 2e-3 * (objective(masked) - objective(best)), weight
        assert error(solved - before[weight], x) <= error(
            before[weight].masked_fill(solved == 0, 0) - before[weight], x
        )


@pytest.mark.parametrize(
    "family",
    [
        name
        for name in ["llama", "mixtral", "gpt_oss", "llama4_text", "dbrx", "t5", "bert", "jamba"]
        if FAMILIES[name].is_current
    ],
)
@pytest.mark.parametrize("values", [{"criterion": "sparsegpt"}, {"criterion": "alps"}, {"refinement": "swap"}])
def test_the_target_is_met_and_what_was_asked_for_is_pruned(family: str, values: dict[str, Any]) -> None:
    model = prune(family, **values)
    for name, weight in matrices(model).items():
        assert weight.isfinite().all(), name
    zeros = [int((weight == 0).sum()) for weight in matrices(model).values()]
    total = sum(weight.numel() for weight in matrices(model).values())
    assert sum(zeros) / total == pytest.approx(0.6, abs=2e-3)
    assert model.config.mwanda_config["achieved_sparsity"] == pytest.approx(0.6, abs=2e-3)


@pytest.mark.parametrize("values", [*SETTINGS.values(), {"criterion": "sparsegpt", "pattern": "4:8"}])
def test_a_pattern_is_kept(values: dict[str, Any]) -> None:
    model = prune("llama", **{"pattern": "2:4", "sparsity": None, "allocation": None} | values)
    kept, run = (int(number) for number in model.config.mwanda_config["pattern"].split(":"))
    for weight in matrices(model).values():
        assert ((weight != 0).view(-1, run).sum(1) == kept).all()


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_refinement_moves_no_value_and_lowers_the_error_that_it_looks_at(family: str) -> None:
    plain, refined = prune(family), prune(family, refinement="swap", refinement_shrinkage=0.0, refinement_ridge=0.0)
    before, inputs = matrices(make(family)), activations(make(family))
    masked, swapped = matrices(plain), matrices(refined)
    for name, old in before.items():
        kept = swapped[name] != 0
        assert torch.equal(swapped[name][kept], old[kept]), name
        assert torch.equal((swapped[name] == 0).sum(1), (masked[name] == 0).sum(1)), name
        assert error(swapped[name] - old, inputs[name]) <= error(masked[name] - old, inputs[name]) * (1 + 1e-5), name
    assert any(not torch.equal(masked[name], swapped[name]) for name in before)


@pytest.mark.parametrize("values", [{"criterion": "alps"}, {"refinement": "swap"}, {"criterion": "sparsegpt"}])
def test_two_runs_give_the_same_bits(values: dict[str, Any]) -> None:
    one, other = (matrices(prune("mixtral", **values)) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_low_precision_keeps_its_dtype() -> None:
    model = FAMILIES["llama"].make().bfloat16()
    MWandaPruner(settings(criterion="alps"), progress=False).prune(model, ROWS)
    for weight in matrices(model).values():
        assert weight.dtype == torch.bfloat16
        assert 0.5 < float((weight == 0).float().mean()) < 0.7


@pytest.mark.parametrize("values", [{"reconstruction": "obs"}, {"refinement": "swap"}, {"criterion": "sparsegpt"}])
def test_statistics_alone_do_not_do(values: dict[str, Any]) -> None:
    model = FAMILIES["llama"].make()
    pruner = MWandaPruner(settings(**values), progress=False)
    statistics = pruner.calibrate(model, ROWS)
    with pytest.raises(ValueError, match=r"look at each block while they prune: call prune\(model, dataset\)"):
        pruner.apply(model, statistics)


def test_an_encoder_is_pruned_before_its_decoder_reads_it() -> None:
    """Sequential statistics of cross-attention are those of the pruned encoder's output."""
    values = {"criterion": "wanda", "group": "row", "allocation": "uniform", "calibration": "sequential"}
    model = prune("m2m_100", **values)
    dense = matrices(make("m2m_100"))
    name = "model.decoder.layers.0.encoder_attn.k_proj"
    scores = dense[name].double().abs().numpy() * np.sqrt(per_token(model, name))
    pruned = (matrices(model)[name] == 0).numpy()
    for row, mask in zip(scores, pruned, strict=True):
        assert row[mask].max() <= row[~mask].min() * (1 + 1e-5)


def per_token(model: PreTrainedModel, name: str) -> Array:
    """Mean over languages of the mean square of what enters a weight."""
    blocks = find_blocks(model)
    weights = [w for found in find_weights(blocks).values() for w in found if w.name == name]
    sums: dict[str, list[Tensor]] = defaultdict(list)
    for language, batch in build_chunks(PAIRS, settings(), model).batches(3):
        with inference_mode(model), watch_inputs(weights, lambda _, x, to=language: sums[to].append(x.flatten(0, -2))):
            run_blocks(model, blocks, batch)
    return np.mean([torch.cat(parts).double().square().mean(0).numpy() for parts in sums.values()], axis=0)
