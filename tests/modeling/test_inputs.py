import pytest
import torch

from optimum_mwanda.modeling.block_source import BlockSource
from optimum_mwanda.modeling.blocks import find_blocks, inference_mode
from optimum_mwanda.modeling.inputs import RunningOrder, watch_inputs
from optimum_mwanda.modeling.weights import find_weights
from optimum_mwanda.walking.replay import BlockCalls
from tests.families.matrix import FAMILIES

GROUPS = {
    "llama": [
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj mlp.up_proj",
        "mlp.down_proj",
    ],
    "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    "gptj": ["attn.q_proj attn.k_proj attn.v_proj mlp.fc_in", "attn.out_proj", "mlp.fc_out"],  # parallel block
    "mixtral": [
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
        "self_attn.o_proj",
        " ".join(f"mlp.experts.{expert}.gate_up_proj" for expert in range(4)),
        " ".join(f"mlp.experts.{expert}.down_proj" for expert in range(4)),
    ],
    "m2m_100": [
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
        "self_attn.out_proj",
        "encoder_attn.q_proj",
        "encoder_attn.k_proj encoder_attn.v_proj",  # these read what the encoder gives
        "encoder_attn.out_proj",
        "fc1",
        "fc2",
    ],
}


@pytest.mark.parametrize("family", GROUPS)
def test_weights_that_read_the_same_tensor_are_grouped_in_running_order(family: str) -> None:
    model = FAMILIES[family].make()
    blocks = find_blocks(model)
    name, block = list(blocks.items())[-1]
    weights = find_weights(blocks)[name]
    with inference_mode(model):
        calls = BlockCalls(model, {name: block}, FAMILIES[family].batches(), BlockSource({name: block}))
        groups = RunningOrder(weights, lambda: next(iter(calls.outputs(name, block)))).groups()
    found = [{weight.name.removeprefix(f"{name}.") for weight in group} for group in groups]
    assert found == [set(group.split()) for group in GROUPS[family]]


def test_a_weight_that_nothing_enters_is_a_group_by_itself() -> None:
    model = FAMILIES["llama"].make()
    weights = find_weights(find_blocks(model))["model.layers.0"]
    order = RunningOrder(weights, lambda: None)
    assert order.groups() == [[weight] for weight in weights]
    assert order.last_module(weights) is None


def test_nothing_is_watched_after_an_error_in_the_watcher() -> None:
    model = FAMILIES["mixtral"].make()
    weights = find_weights(find_blocks(model))["model.layers.0"]

    def fail(name: str, x: torch.Tensor) -> None:
        raise RuntimeError(name)

    with pytest.raises(RuntimeError, match="q_proj"), watch_inputs(weights, fail):
        model(**FAMILIES["mixtral"].batches()[0])
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_last_module_of_some_weights_is_the_one_that_is_called_last() -> None:
    model = FAMILIES["gptj"].make()  # attention and feed-forward read the same input; the latter is called later
    weights = {w.name.removeprefix("transformer.h.0."): w for w in find_weights(find_blocks(model))["transformer.h.0"]}
    order = RunningOrder(list(weights.values()), lambda: model(**FAMILIES["gptj"].batches()[0]))
    for some, last in (
        ("attn.q_proj mlp.fc_in attn.out_proj", "mlp.fc_in"),
        ("attn.out_proj attn.v_proj", "attn.out_proj"),
        ("mlp.fc_out attn.q_proj", "mlp.fc_out"),
    ):
        assert order.last_module([weights[name] for name in some.split()]) is weights[last].module
