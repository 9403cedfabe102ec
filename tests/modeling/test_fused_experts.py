"""What is said to enter the matrices of fused experts, against what the model makes of it."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from optimum_mwanda import CalibrationStatistics, MWandaConfig, MWandaPruner
from optimum_mwanda.modeling import inputs
from optimum_mwanda.modeling.blocks import find_blocks
from optimum_mwanda.modeling.fused_experts import find_experts
from optimum_mwanda.modeling.weights import find_weights, flat
from tests.conftest import assert_untouched, make_rows, state_of
from tests.families.matrix import FAMILIES

FUSED = [
    name
    for name in [
        "mixtral",
        "qwen3_moe",
        "gpt_oss",
        "llama4_text",
        "dbrx",
        "granitemoe",
        "jamba",
        "deepseek_v3",
        "jetmoe",
    ]
    if FAMILIES[name].is_current
]
ROWS = make_rows(rows=3, length=24)
STORED_IN_OUT = ("GptOssExperts", "Llama4TextExperts")


def pruner(**values: Any) -> MWandaPruner:
    return MWandaPruner(
        MWandaConfig(**{"sequence_length": 24, "batch_size": 3, "group": "matrix", **values}), progress=False
    )


def make(family: str) -> PreTrainedModel:
    """A tiny random model, each token of which goes to two of four experts (to one in Llama 4)."""
    config = {**FAMILIES[family].config, **({"num_experts_per_tok": 2} if family == "gpt_oss" else {})}
    return dataclasses.replace(FAMILIES[family], config=config).make().train()


def calls_of_experts(model: PreTrainedModel) -> list[tuple[Any, tuple[Any, ...], dict[str, Any], Tensor]]:
    """Every module with fused experts, the arguments that it was called with and its output."""
    calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Tensor]] = []
    handles = [
        module.register_forward_hook(lambda m, a, k, out: calls.append((m, a, k, out)), with_kwargs=True)
        for module in model.modules()
        if find_experts(module) is not None
    ]
    with torch.no_grad():
        model.eval()(input_ids=torch.tensor([row["input_ids"] for row in ROWS]))
    for handle in handles:
        handle.remove()
    return calls


def output_of(module: Any, expert: int, name: str, inner: Tensor) -> Tensor:
    """What the last matrix of an expert makes of its input."""
    if name == "mlp.w2":
        return inner @ module.mlp.w2.view(module.num_experts, -1, module.hidden_size)[expert]
    weight = module.down_proj[expert]
    out = inner @ (weight if type(module).__name__ in STORED_IN_OUT else weight.T)
    bias = getattr(module, "down_proj_bias", None)
    return out if bias is None else out + bias[expert]


@pytest.mark.parametrize("family", [name for name in FUSED if name != "jetmoe"])
def test_inner_activations_give_the_output_of_the_layer(family: str) -> None:
    """The output is put together anew from what is said to enter the last matrix of every expert."""
    calls = calls_of_experts(make(family))
    assert calls
    for module, args, kwargs, output in calls:
        layout = find_experts(module)
        inner = {e: x for e, name, x in layout.inputs(module, args, kwargs) if name in ("down_proj", "mlp.w2")}
        name = "mlp.w2" if "mlp.w2" in layout.parameters else "down_proj"
        expected = torch.zeros(output.numel() // output.shape[-1], output.shape[-1])
        if len(args) == 1:  # Llama 4: one slice of the output per expert
            slices = args[0].view(layout.count, -1, args[0].shape[-1])
            expected = expected.view(layout.count, -1, output.shape[-1])
            for expert, x in inner.items():
                expected[expert, slices[expert].any(1)] = output_of(module, expert, name, x)
        else:
            chosen, shares = args[1].reshape(len(expected), -1), args[2].reshape(len(expected), -1)
            for expert, x in inner.items():
                token, place = torch.where(chosen == expert)
                expected[token] += output_of(module, expert, name, x) * shares[token, place, None]
        torch.testing.assert_close(output.reshape(expected.shape), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FUSED)
def test_every_matrix_of_every_expert_is_a_view_of_shape_out_in(family: str) -> None:
    """A view is right if the first matrix of an expert, applied to what enters it, fits what enters the last one."""
    model = make(family)
    weights = {w.name: w for w in flat(find_weights(find_blocks(model))) if w.expert is not None}
    widths: dict[str, int] = {}
    for module, args, kwargs, _ in calls_of_experts(model):
        path = next(name for name, m in model.named_modules() if m is module)
        for expert, parameter, x in find_experts(module).inputs(module, args, kwargs):
            owner, _, leaf = f"{path}.{parameter}".rpartition(".")
            widths[f"{owner}.{expert}.{leaf}"] = x.shape[-1]
    assert widths
    for name, width in widths.items():
        assert weights[name].in_features == width, name
    for weight in weights.values():
        before = weight.module.get_parameter(weight.parameter).detach().clone()
        weight.matrix.zero_()
        after = weight.module.get_parameter(weight.parameter)
        assert int((after != before).sum()) == weight.numel == int((before != 0).sum() - (after != 0).sum())


@pytest.mark.parametrize("family", FUSED)
def test_tokens_are_counted_per_expert_and_language(family: str) -> None:
    model = make(family)
    before = state_of(model)
    statistics = pruner().calibrate(model, ROWS)
    assert_untouched(model, before)
    routed: dict[str, Tensor] = {}
    for expert, tokens in statistics.expert_tokens.items():
        layer = expert.rpartition(".")[0]
        routed[layer] = routed.get(layer, 0) + tokens
    top_k = 1 if family == "llama4_text" else 2
    assert routed
    for tokens in routed.values():
        assert tokens.tolist() == [72 * top_k] * 3  # three rows of 24 tokens in each of three languages


def test_sums_of_an_expert_are_those_of_the_tokens_that_the_router_sends_it() -> None:
    model = make("mixtral")
    statistics = pruner().calibrate(model, ROWS)
    (_, (hidden, chosen, _), _, _), *_ = calls_of_experts(model)
    for expert in range(4):
        entry = statistics.weights[f"model.layers.0.mlp.experts.{expert}.gate_up_proj"]
        for row in range(3):
            tokens = [t for t in range(72 * row, 72 * (row + 1)) if expert in chosen[t].tolist()]
            assert entry.tokens[row] == len(tokens)
            expected = sum(hidden[t].double().square() for t in tokens)
            torch.testing.assert_close(entry.square_sum[row], expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("calibration", ["dense", "sequential"])
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_the_experts_implementation_is_used_and_kept(implementation: str, calibration: str) -> None:
    model = make("mixtral")
    model.set_experts_implementation(implementation)
    expected = logits(model)
    statistics = pruner().calibrate(model, ROWS)
    assert torch.equal(logits(model), expected)
    with pytest.raises(ValueError, match="experts_policy"):
        pruner(calibration=calibration, experts_policy="error", min_expert_tokens=10_000).prune(model, ROWS)
    assert model.config._experts_implementation == implementation
    assert torch.equal(logits(model), expected)
    reference = pruner().calibrate(make("mixtral"), ROWS)
    for name, entry in reference.weights.items():
        torch.testing.assert_close(statistics.weights[name].square_sum, entry.square_sum, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
@pytest.mark.parametrize("family", [name for name in FUSED if name != "llama4_text"])
def test_what_enters_experts_is_seen_where_the_model_computes_it(
    family: str, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(family)
    if family not in ("dbrx", "jetmoe"):
        model.set_experts_implementation(implementation)
    again = {}
    for module, args, kwargs, _ in calls_of_experts(model):
        path = next(name for name, m in model.named_modules() if m is module)
        for expert, parameter, x in find_experts(module).inputs(module, args, kwargs):
            owner, _, leaf = f"{path}.{parameter}".rpartition(".")
            again[f"{owner}.{expert}.{leaf}"] = x.double().square().sum(0)

    def without_inputs(module: nn.Module) -> Any:
        layout = find_experts(module)
        return layout and dataclasses.replace(layout, inputs=lambda *_: pytest.fail("computed a second time"))

    monkeypatch.setattr(inputs, "find_experts", without_inputs)
    statistics = pruner().calibrate(model, ROWS)
    assert again
    for name, expected in again.items():
        torch.testing.assert_close(statistics.weights[name].square_sum.sum(0), expected, rtol=1e-4, atol=1e-6)


def test_an_interrupt_in_the_experts_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("mixtral")
    experts = model.model.layers[0].mlp.experts

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(experts.act_fn, "forward", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pruner().calibrate(model, ROWS)
    assert "forward" not in vars(experts)
    assert not torch.overrides._get_current_function_mode_stack()


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([ROWS[0]["input_ids"]])).logits


# ------------------------------------------------------------------------------------- experts without enough tokens


def starved() -> PreTrainedModel:
    """A model whose router never chooses the last expert of the first layer."""
    model = make("gpt_oss")
    with torch.no_grad():
        model.model.layers[0].mlp.router.bias[3] = -1e4
    return model


LACKING = "model.layers.0.mlp.experts.3"


def matrices(model: PreTrainedModel) -> dict[str, Tensor]:
    found = find_weights(find_blocks(model))
    return {w.name: w.matrix.clone() for weights in found.values() for w in weights}


def lowest(scores: Tensor, like: Tensor) -> Tensor:
    """As many of the lowest scores of a matrix as there are zeros in another one."""
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[scores.flatten().argsort(stable=True)[: int((like == 0).sum())]] = True
    return mask.view(scores.shape)


@pytest.mark.parametrize("calibration", ["dense", "sequential"])
@pytest.mark.parametrize("allocation", ["uniform", "owl", "cwl"])
def test_an_expert_that_no_token_reaches_is_pruned_by_magnitude_and_named(
    allocation: str, calibration: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = starved()
    dense = matrices(model)
    pruner(allocation=allocation, calibration=calibration, min_expert_tokens=4).prune(model, ROWS)
    for name, weight in matrices(model).items():
        assert 0.4 < float((weight == 0).float().mean()) < 0.6, name
        if name.startswith(LACKING):
            assert torch.equal(weight == 0, lowest(dense[name].abs(), weight)), name
    assert model.config.mwanda_config["achieved_sparsity"] == pytest.approx(0.5, abs=1e-3)
    (message,) = [record.getMessage() for record in caplog.records if "experts_policy" in record.getMessage()]
    assert "1 experts with fewer than 4 tokens" in message
    assert LACKING in message


def test_shared_statistics_are_those_of_all_experts_of_the_layer() -> None:
    model = starved()
    dense = matrices(model)
    settings = {"criterion": "wanda", "allocation": "uniform", "min_expert_tokens": 4}
    statistics = pruner(**settings).calibrate(model, ROWS)
    pruner(experts_policy="shared", **settings).apply(model, statistics)
    pruned = matrices(model)
    entries = [statistics.weights[f"model.layers.0.mlp.experts.{e}.gate_up_proj"] for e in range(4)]
    mean_square = sum(e.square_sum for e in entries) / sum(e.tokens for e in entries)[:, None]
    first, last = f"{LACKING}.gate_up_proj", f"{LACKING}.down_proj"
    scores = dense[first].abs() * mean_square.mean(0).sqrt().float()
    assert torch.equal(pruned[first] == 0, lowest(scores, pruned[first]))
    assert torch.equal(pruned[last] == 0, lowest(dense[last].abs(), pruned[last]))


@pytest.mark.parametrize("criterion", ["sparsegpt", "alps"])
def test_a_solver_leaves_an_expert_with_shared_statistics_to_wanda(criterion: str) -> None:
    model = starved()
    dense = matrices(model)
    settings = {"allocation": "uniform", "experts_policy": "shared", "min_expert_tokens": 4, "calibration": "dense"}
    pruner(criterion=criterion, **settings).prune(model, ROWS)
    by_score = starved()
    pruner(criterion="wanda", **settings).prune(by_score, ROWS)
    for name, expected in matrices(by_score).items():
        actual = matrices(model)[name]
        if name.startswith(LACKING):
            assert torch.equal(actual, expected), name
        elif name.endswith("gate_up_proj"):  # its experts have Gram matrices, with which values change
            assert not torch.equal(actual, dense[name].where(actual != 0, 0.0)), name


@pytest.mark.parametrize("calibration", ["dense", "sequential"])
def test_skipped_experts_stay_dense_and_the_others_meet_the_target(calibration: str) -> None:
    model = starved()
    dense = matrices(model)
    pruner(experts_policy="skip", calibration=calibration, min_expert_tokens=4).prune(model, ROWS)
    pruned = matrices(model)
    others = {name: weight for name, weight in pruned.items() if not name.startswith(LACKING)}
    assert all(torch.equal(dense[name], pruned[name]) for name in pruned.keys() - others.keys())
    zeros, total = sum(int((w == 0).sum()) for w in others.values()), sum(w.numel() for w in others.values())
    assert zeros / total == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("calibration", ["dense", "sequential"])
def test_policy_error_names_the_experts_and_touches_nothing(calibration: str) -> None:
    model = starved()
    before = state_of(model)
    with pytest.raises(ValueError, match=rf"1 experts with fewer than 4 tokens: {LACKING}(.|\n)*more text"):
        pruner(experts_policy="error", calibration=calibration, min_expert_tokens=4).prune(model, ROWS)
    assert_untouched(model, before)


def test_a_language_that_never_reaches_an_expert_does_not_count_there() -> None:
    """Tokens of one language are kept from an expert: its masks are those of a calibration on the others."""
    model = make("gpt_oss")
    rows = [row for row in ROWS if row["language"] != "sw"]
    swahili = [row for row in ROWS if row["language"] == "sw"]
    both = without_expert(pruner().calibrate(model, rows), pruner().calibrate(model, swahili))
    masks = pruned_by(both)
    others = pruned_by(pruner().calibrate(make("gpt_oss"), rows))
    assert both.expert_tokens[LACKING].tolist()[-1] == 0
    assert "'sw' does not reach 1 of 8 experts" in str(both)
    for name, weight in masks.items():
        if name.startswith(LACKING):
            assert torch.equal(weight == 0, others[name] == 0)
    assert any(not torch.equal(weight, others[name]) for name, weight in masks.items())


def without_expert(rest: CalibrationStatistics, language: CalibrationStatistics) -> CalibrationStatistics:
    """Both together, with what the language sent to the expert taken out."""
    for name, entry in language.weights.items():
        if name.startswith(LACKING):
            entry.tokens.zero_()
            entry.square_sum.zero_()
    return rest.merge(language)


def pruned_by(statistics: CalibrationStatistics) -> dict[str, Tensor]:
    model = make("gpt_oss")
    pruner(allocation="uniform", min_expert_tokens=1).apply(model, statistics)
    return matrices(model)


def test_statistics_of_experts_are_saved_merged_and_selected(tmp_path: Any) -> None:
    statistics = pruner().calibrate(make("gpt_oss"), ROWS)
    statistics.save(tmp_path / "statistics.safetensors")
    loaded = CalibrationStatistics.load(tmp_path / "statistics.safetensors")
    assert loaded.experts == statistics.experts == tuple(statistics.expert_tokens)
    assert len(loaded.experts) == 8
    assert loaded.select(["en"]).experts == statistics.experts
    other = pruner().calibrate(make("gpt_oss"), make_rows(rows=3, length=24, seed=1))
    total = loaded.merge(other)
    for expert, tokens in total.expert_tokens.items():
        assert torch.equal(tokens, loaded.expert_tokens[expert] + other.expert_tokens[expert])


class Unknown(nn.Module):
    """A layer that keeps its matrices in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.matrices = nn.Parameter(torch.randn(4, 32, 32))

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_an_unknown_layout_is_refused_unless_it_is_left_out() -> None:
    model = make("mixtral")
    model.model.layers[0].mlp.extra = Unknown()
    with pytest.raises(ValueError, match=r"'model.layers.0.mlp.extra' \(Unknown\).*matrices.*exclude"):
        pruner().prune(model, ROWS)
    pruner(exclude=["*.extra"]).prune(model, ROWS)
    assert not (model.model.layers[0].mlp.extra.matrices == 0).any()
