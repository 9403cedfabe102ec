import pytest
import torch
from torch import nn

from optimum_mwanda.modeling.blocks import find_blocks
from optimum_mwanda.modeling.weights import PrunableWeight, find_weights
from optimum_mwanda.record.matrices import count_matrices, loaded_matrices
from optimum_mwanda.record.parts import RecordedMatrix
from tests.conftest import make_model
from tests.storage.families import make_family

UP = "model.layers.1.mlp.up_proj"
OFFLOADED = f"'{UP}' has no values .meta device.: load the whole model into memory"


def weights_of(model: nn.Module) -> list[PrunableWeight]:
    return [weight for found in find_weights(find_blocks(model)).values() for weight in found]


def test_zeros_of_all_experts_in_a_parameter_are_one_count() -> None:
    model = make_family("mixtral")
    experts = model.model.layers[0].mlp.experts
    with torch.no_grad():
        experts.down_proj[0, 0] = 0
        experts.down_proj[3, :2] = 0
    shape = tuple(experts.down_proj.shape)
    columns = shape[2]
    expected = RecordedMatrix("model.layers.0.mlp.experts.down_proj", "model.layers.0", shape, 3 * columns)
    assert expected in count_matrices(weights_of(model))
    (last,) = (weight for weight in weights_of(model) if weight.name == "model.layers.0.mlp.experts.3.down_proj")
    assert count_matrices([last]) == [expected]


def test_transposed_matrices_are_counted_as_out_and_in() -> None:
    model = make_model("gpt2")
    weight = weights_of(model)[0]
    with torch.no_grad():
        weight.matrix[0] = 0
    (found,) = count_matrices([weight])
    assert (found.shape, found.zeros) == ((weight.out_features, weight.in_features), weight.in_features)


def test_a_weight_without_values_is_named_when_it_is_counted() -> None:
    model = make_model()
    weights, matrices = weights_of(model), loaded_matrices(model)
    model.get_submodule(UP).to("meta")
    with pytest.raises(ValueError, match=OFFLOADED):
        count_matrices(weights)
    with pytest.raises(ValueError, match=OFFLOADED):
        matrices[UP].count_zeros()
    assert matrices["model.layers.0.mlp.up_proj"].count_zeros() == 0
