from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from optimum_mwanda.storage.conversion import parameter_names

from .families import FAMILIES, make_family

EXPERT = "model.layers.7.block_sparse_moe.experts.12"


def test_experts_of_one_layer_become_one_parameter() -> None:
    names = [f"{EXPERT}.w1.weight", f"{EXPERT}.w3.weight", f"{EXPERT}.w2.weight", "model.norm.weight"]
    assert parameter_names({"model_type": "mixtral"}, names) == {
        f"{EXPERT}.w1.weight": "model.layers.7.mlp.experts.gate_up_proj",
        f"{EXPERT}.w3.weight": "model.layers.7.mlp.experts.gate_up_proj",
        f"{EXPERT}.w2.weight": "model.layers.7.mlp.experts.down_proj",
        "model.norm.weight": "model.norm.weight",
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_stored_names_lead_to_all_parameters(family: str, tmp_path: Path) -> None:
    model = make_family(family)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        stored = set(file.keys())
    parameters = set(parameter_names(model.config.to_dict(), stored).values())
    assert parameters | model.all_tied_weights_keys.keys() == set(model.state_dict())


def test_tensors_that_are_split_are_left_out() -> None:
    name = "model.layers.0.mlp.experts.5.down_proj.weight"
    assert parameter_names({"model_type": "ernie4_5_vl_moe"}, [name]) == {}
    assert parameter_names({"model_type": "qwen3_moe"}, [name]) == {name: "model.layers.0.mlp.experts.down_proj"}


def test_the_config_inside_a_config_counts() -> None:
    config = {"model_type": "unknown", "text_config": {"model_type": "qwen3_moe"}}
    name = "model.language_model.layers.0.mlp.experts.5.down_proj.weight"
    assert parameter_names(config, [name]) == {name: "model.language_model.layers.0.mlp.experts.down_proj"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["mixtral", "legacy", "funnel", "x", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["model_type", "architectures", "text_config"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["model_type", "architectures", "text_config"]), JSON))
def test_no_config_breaks_it(config: dict[str, Any]) -> None:
    assert set(parameter_names(config, ["a.b.weight", "layers.0.weight", ""])) <= {"a.b.weight", "layers.0.weight", ""}
