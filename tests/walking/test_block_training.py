"""Blocks are trained to give the dense model's outputs, whatever has chosen their masks and values."""

import functools
import gc
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from optimum_mwanda import MWandaConfig, MWandaPruner, sparsity_record
from optimum_mwanda.data.chunks import build_chunks
from optimum_mwanda.modeling.blocks import find_blocks
from optimum_mwanda.modeling.weights import find_weights, flat
from optimum_mwanda.processes.group import Processes
from optimum_mwanda.walking import block_by_block as walk_module
from optimum_mwanda.walking.block_training import BlockTrainer, _scale
from optimum_mwanda.walking.regions import Aim, find_regions, squares, watched_outputs
from tests.conftest import assert_untouched, has_hooks, make_model, make_rows, state_of
from tests.families.matrix import FAMILIES
from tests.reference.block import trained_blocks

ROWS = make_rows(rows=4, length=24)
TEN = ("llama", "gemma3", "gemma4_text", "gpt2", "bloom", "mixtral", "jamba", "dbrx", "t5", "xlm-roberta")
COMBINED: dict[str, dict[str, Any]] = {
    "masks": {"reconstruction": "block"},
    "trained masks": {"reconstruction": "none", "refinement": "block"},
    "swaps, trained masks and values": {"reconstruction": "block", "refinement": "swap+block"},
    "trained masks 2:4": {"reconstruction": "none", "refinement": "block", "pattern": "2:4"},
    "swaps": {"reconstruction": "block", "refinement": "swap"},
    "obs": {"reconstruction": "obs+block"},
    "alps": {"reconstruction": "block", "criterion": "alps"},
    "sparsegpt 2:4": {"reconstruction": "block", "criterion": "sparsegpt", "pattern": "2:4"},
    "two blocks": {"reconstruction": "block", "reconstruction_blocks": 2},
}


def settings(**values: Any) -> MWandaConfig:
    small = {"sequence_length": 24, "batch_size": 2, "reconstruction": "block", "reconstruction_epochs": 2}
    return MWandaConfig(**{**small, "reconstruction_learning_rate": 1e-3, **values})  # there are few steps


def prune(model: PreTrainedModel, rows: Any = ROWS, **values: Any) -> PreTrainedModel:
    return MWandaPruner(settings(**values), progress=False).prune(model, rows)


def matrices(model: PreTrainedModel) -> dict[str, Tensor]:
    return {weight.name: weight.matrix.clone() for weight in flat(find_weights(find_blocks(model)))}


def is_plain(parameter: nn.Parameter) -> bool:
    """Whether a parameter is as it is outside of training."""
    return type(parameter) is nn.Parameter and parameter.is_leaf and parameter.grad is None


def outcomes(model: PreTrainedModel) -> list[Any]:
    record = sparsity_record(model)
    assert record is not None
    return [block.reconstruction for block in record.blocks]


@pytest.mark.parametrize(("sensitivity", "together"), [("none", 1), ("fisher", 1), ("none", 3), ("fisher", 2)])
def test_the_reference_gives_the_same(sensitivity: str, together: int) -> None:
    """Masks by magnitude do not depend on the text, so that the reference need not know how masks are chosen."""
    dense = make_model().eval()
    masked = make_model()
    MWandaPruner(MWandaConfig(criterion="magnitude", allocation="uniform"), progress=False).prune(masked)
    masks = {f"{name}.weight": matrix == 0 for name, matrix in matrices(masked).items()}
    chosen: dict[str, Any] = {"reconstruction_epochs": 3, "reconstruction_held_out": 0.5, "seed": 3}
    chosen |= {"sensitivity": sensitivity, "reconstruction_blocks": together}
    model = prune(make_model(), criterion="magnitude", allocation="uniform", **chosen)
    chunks = [
        (language, batch["input_ids"]) for language, batch in build_chunks(ROWS, settings(**chosen), model).batches(1)
    ]
    with torch.no_grad(), torch.random.fork_rng():
        options: dict[str, Any] = {"share": 0.5, "epochs": 3, "rate": 1e-3, "seed": 3}
        options |= {"weighs_outputs": sensitivity == "fisher", "together": together}
        expected, facts = trained_blocks(dense, masks, chunks, **options)
    assert any(epoch for epoch, _, _ in facts)
    for number, found in enumerate(outcomes(model)):
        epoch, before, after = facts[number // together]
        assert found.epoch == epoch
        assert (found.before, found.after) == pytest.approx((before, after), rel=1e-4)
    # Sums are taken in another order; Adam divides small gradients by themselves, so some differences grow.
    there = expected.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor, there[name], atol=1e-5), name
        assert torch.equal(tensor == 0, there[name] == 0), name


def test_the_reference_gives_the_same_masks() -> None:
    dense = make_model().double().eval()
    masked = make_model().double()
    by_size: dict[str, Any] = {"criterion": "magnitude", "allocation": "uniform"}
    MWandaPruner(MWandaConfig(**by_size), progress=False).prune(masked)
    masks = {f"{name}.weight": matrix == 0 for name, matrix in matrices(masked).items()}
    chosen: dict[str, Any] = {"reconstruction_epochs": 3, "reconstruction_held_out": 0.5, "seed": 3}
    chosen |= {"reconstruction": "none", "refinement": "block", "refinement_reach": 0.8}
    model = prune(make_model().double(), **by_size, **chosen)
    chunks = [
        (language, batch["input_ids"]) for language, batch in build_chunks(ROWS, settings(**chosen), model).batches(1)
    ]
    with torch.no_grad(), torch.random.fork_rng():
        steps = 3 * len(chunks) // 2  # half of the chunks are held back
        options: dict[str, Any] = {"share": 0.5, "epochs": 3, "rate": 2 * 0.8 / steps, "seed": 3, "chooses": True}
        expected, facts = trained_blocks(dense, masks, chunks, **options)
    assert [each.epoch for each in outcomes(model)] == [epoch for epoch, _, _ in facts] != [0, 0, 0]
    there = expected.state_dict()
    assert all(torch.equal(tensor, there[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", COMBINED)
def test_errors_on_held_back_text_fall_and_zeros_stay(name: str) -> None:
    values = COMBINED[name]
    plain = "obs" if name in ("obs", "alps", "sparsegpt 2:4") else "none"
    before = {"none": "none", "block": "none", "swap+block": "swap", "swap": "swap"}[values.get("refinement", "none")]
    without = {**values, "reconstruction": plain, "refinement": before, "calibration": "sequential"}
    # With all else in one block, what is trained starts from what there would be without training.
    include = {"include": ("model.layers.1.*",)}
    start, model = (matrices(prune(make_model(), **{**each, **include})) for each in (without, values))
    for matrix, trained in zip(start.values(), model.values(), strict=True):
        assert torch.equal((matrix == 0).sum(1), (trained == 0).sum(1))
        assert torch.equal(matrix == 0, trained == 0) or "trained masks" in name
    found = outcomes(prune(make_model(), **values))
    assert all(each.after <= each.before and each.epoch in (0, 1, 2) for each in found)
    if name in ("masks", "swaps"):  # of random text there is little to learn beyond the least squares
        assert all(each.after < each.before for each in found)


REGIONS: dict[str, dict[str, Any]] = {
    "block": {},
    "part": {"reconstruction_region": "part"},
    "two blocks": {"reconstruction_blocks": 2, "reconstruction_held_out": 0.0},  # one random text judges no other
}


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("family", [name for name in TEN if FAMILIES[name].is_current])
def test_families_are_trained(family: str, region: str) -> None:
    dense, model = FAMILIES[family].make(), FAMILIES[family].make()
    prune(model, FAMILIES[family].rows(), **REGIONS[region])
    before = dense.state_dict()
    holders = {id(weight.module.get_parameter(weight.parameter)) for weight in flat(find_weights(find_blocks(model)))}
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all()
        if id(parameter) not in holders:
            assert torch.equal(parameter, before[name]), name
    found = outcomes(model)
    assert all(each.after <= each.before for each in found)
    assert any(each.epoch for each in found)
    pruned = matrices(model)
    assert any((pruned[name] != matrix)[pruned[name] != 0].any() for name, matrix in matrices(dense).items())


@pytest.mark.parametrize("region", ["block", "part"])
@pytest.mark.parametrize("family", ["gpt2", "t5", "falcon"])
def test_errors_are_weighed_by_how_much_the_loss_depends_on_them(family: str, region: str) -> None:
    rows, chosen = FAMILIES[family].rows(), {"criterion": "magnitude", "allocation": "uniform"}
    plain, weighed = (
        prune(FAMILIES[family].make(), rows, reconstruction_region=region, sensitivity=sensitivity, **chosen)
        for sensitivity in ("none", "fisher")
    )
    assert all(each.after <= each.before for each in outcomes(weighed))
    assert any(each.epoch for each in outcomes(weighed))
    assert [each.before for each in outcomes(weighed)] != [each.before for each in outcomes(plain)]
    assert all(
        torch.equal(a == 0, b == 0) for a, b in zip(*(matrices(m).values() for m in (plain, weighed)), strict=True)
    )


def test_steps_do_not_depend_on_the_batches_of_everything_else() -> None:
    chosen = {"criterion": "magnitude", "allocation": "uniform"}
    one, other = (matrices(prune(make_model(), batch_size=size, **chosen)) for size in (1, 4))
    assert all(torch.equal(one[name], other[name]) for name in one)
    larger = matrices(prune(make_model(), reconstruction_batch_size=2, **chosen))
    assert any((one[name] - larger[name]).abs().max() > 1e-3 for name in one)


@pytest.mark.parametrize("family", ["mixtral", "llama"])
def test_two_runs_give_the_same_bits_and_leave_random_numbers_alone(family: str) -> None:
    torch.manual_seed(7)
    one = state_of(prune(FAMILIES[family].make(), FAMILIES[family].rows()))
    torch.manual_seed(8)
    model = FAMILIES[family].make()
    state = torch.get_rng_state()
    other = state_of(prune(model, FAMILIES[family].rows()))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], other[name]) for name in one)
    third = state_of(prune(FAMILIES[family].make(), FAMILIES[family].rows(), seed=1))
    assert any(not torch.equal(one[name], third[name]) for name in one)


def test_nothing_of_the_training_is_left_on_the_model() -> None:
    model = make_model()
    frozen = {name for name, _ in model.named_parameters() if "q_proj" in name or "norm" in name}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    before = matrices(model)
    prune(model)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is (name not in frozen), name
        assert is_plain(parameter), name
    assert not has_hooks(model)
    for module in model.modules():
        assert module.training
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert all((matrices(model)[name] != before[name]).any() for name in before)  # also of what is frozen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    model = prune(make_model().to(dtype))
    assert {matrix.dtype for matrix in matrices(model).values()} == {dtype}
    assert all(0.45 < float((matrix == 0).float().mean()) < 0.55 for matrix in matrices(model).values())
    assert all(each.after < each.before for each in outcomes(model))


def test_gradients_in_float16_neither_vanish_nor_overflow() -> None:
    def trained(dtype: torch.dtype) -> dict[str, Tensor]:
        model = make_model()
        with torch.no_grad():
            for weight in flat(find_weights(find_blocks(model))):
                if weight.name.endswith(("o_proj", "down_proj")):
                    weight.matrix.mul_(64)
        model = model.half().to(dtype)
        start = matrices(model)
        after = matrices(prune(model, criterion="magnitude", allocation="uniform"))
        return {name: (matrix - start[name]).float()[matrix != 0] for name, matrix in after.items()}

    half, full = trained(torch.float16), trained(torch.float32)
    for name, change in full.items():
        assert torch.corrcoef(torch.stack([change, half[name]]))[0, 1] > 0.95, name


def test_a_token_with_most_of_the_energy_counts_as_any_other() -> None:
    """Such as the first token of a text, in many models."""
    aim = Aim([])  # type: ignore[arg-type]
    dense = torch.tensor([[[1000.0, 0.0], [2.0, 0.0], [0.0, 1.0], [2.0, 0.0]]])
    aim.add(dense, None)
    (found,) = aim.energies([0])
    assert found.tolist() == [[1e6, 4.0, 4.0, 4.0]]


@pytest.mark.parametrize("factor", [1e-12, 1.0, 1e6])
def test_gradients_of_outputs_in_float16_are_brought_to_one_size(factor: float) -> None:
    output, aim = torch.ones(2, 8, dtype=torch.float16), torch.full((2, 8), 1.5)
    factors = torch.tensor([factor, factor / 2])
    loss = factor * squares(output, aim).sum()
    scale = _scale(loss, factors, output)
    assert math.log2(scale) == round(math.log2(scale))
    assert 2**-6 <= scale * 2 * factor * 0.5 < 2**-5
    assert _scale(loss, factors, output.float()) == _scale(loss * 0, factors, output) == 1


def test_weights_that_are_not_pruned_are_not_trained() -> None:
    dense = FAMILIES["mixtral"].make()
    names = [*matrices(dense)]
    left_out = ("*.experts.0.*", "*.q_proj", "model.layers.1.*")
    model = prune(FAMILIES["mixtral"].make(), FAMILIES["mixtral"].rows(), exclude=left_out)
    before, after = matrices(dense), matrices(model)
    for name in names:
        is_left = ".experts.0." in name or "q_proj" in name or "layers.1." in name
        assert torch.equal(before[name], after[name]) is is_left, name


def test_a_language_with_one_chunk_is_trained_on_and_judged_by_it() -> None:
    found = outcomes(prune(make_model(), make_rows(rows=1, length=24)))
    assert all(each.after < each.before for each in found)


def test_languages_count_by_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A language that weighs nothing leaves no trace."""
    loud = [{**row, "input_ids": row["input_ids"][::-1]} if row["language"] == "sw" else row for row in ROWS]
    chosen: dict[str, Any] = {"criterion": "magnitude", "allocation": "uniform", "language_weights": {"sw": 0.0}}
    one, other = (state_of(prune(make_model(), rows, **chosen)) for rows in (ROWS, loud))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_infinite_outputs_are_refused_and_the_model_is_as_before() -> None:
    model = make_model()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1e38)
        model.model.layers[1].mlp.up_proj.weight.mul_(1e10)
    before = state_of(model)
    with pytest.raises(FloatingPointError, match=r"layers\.1"):
        prune(model, criterion="magnitude", allocation="uniform")
    assert_untouched(model, before)


ERRORS = {"error": RuntimeError("out of memory"), "interrupt": KeyboardInterrupt()}
FAILURES = [  # each setting fails early and late, and in both ways
    (number, name, way)
    for i, name in enumerate(COMBINED)
    for number, way in zip((1, 4), [*ERRORS][:: 1 if i % 2 else -1], strict=True)
]


@pytest.mark.parametrize(("number", "name", "way"), FAILURES)
def test_what_fails_in_training_leaves_the_model_as_it_was(number: int, name: str, way: str) -> None:
    model, values, error = make_model(), COMBINED[name], ERRORS[way]
    before = state_of(model)
    forward, calls = type(model.model.layers[1]).forward, []

    def fail(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and self is model.model.layers[1]:
            calls.append(args)
            if len(calls) == number:
                raise error
        return forward(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model.model.layers[1]), "forward", fail)
        with pytest.raises(type(error)):
            prune(model, **values)
    assert_untouched(model, before)
    assert all(map(is_plain, model.parameters()))
    again = state_of(prune(model, **values))
    fresh = pruned_at_once(name)
    assert all(torch.equal(again[key], fresh[key]) for key in fresh)


@functools.cache
def pruned_at_once(name: str) -> dict[str, Tensor]:
    return state_of(prune(make_model(), **COMBINED[name]))


@pytest.mark.parametrize("place", ["cpu", "folder"])
def test_hidden_states_may_lie_elsewhere(place: str, tmp_path: Path) -> None:
    where = str(tmp_path) if place == "folder" else place
    model = MWandaPruner(settings(), progress=False, activations=where).prune(make_model(), ROWS)
    expected = state_of(prune(make_model()))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_dense_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"reconstruction='block' trains each block.*calibration='sequential'"):
        settings(calibration="dense")


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimum_mwanda.pruning.checks.current", lambda: Processes(0, 2))
    with pytest.raises(ValueError, match=r"trains blocks in one process, and 2 share"):
        prune(make_model())


def test_blocks_are_trained_one_by_one_and_after_their_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    train, seen = BlockTrainer.train, []
    model = make_model()

    def noted(self: BlockTrainer, blocks: Any, *args: Any) -> Any:
        zeros = [int((weight.matrix == 0).sum()) > 0 for weight in flat(find_weights(find_blocks(model)))]
        seen.append(([*blocks], sum(zeros)))
        return train(self, blocks, *args)

    monkeypatch.setattr(BlockTrainer, "train", noted)
    prune(model)
    assert seen == [([f"model.layers.{number}"], 7 * (number + 1)) for number in range(3)]


def test_blocks_that_are_trained_together_are_pruned_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block sees what the one before it has become, and both are trained for what the last one gives."""
    train, seen = BlockTrainer.train, []

    def noted(self: BlockTrainer, blocks: Any, *args: Any) -> Any:
        before = matrices(model)
        changes, outcome = train(self, blocks, *args)
        assert all(torch.equal(before[name], matrix) for name, matrix in matrices(model).items())
        seen.append(([*blocks], {weight.block for weight, _ in changes}))
        return changes, outcome

    monkeypatch.setattr(BlockTrainer, "train", noted)
    chosen: dict[str, Any] = {"refinement": "swap", "reconstruction_learning_rate": 1e-30}  # nothing moves
    model = make_model()
    untrained = matrices(prune(model, reconstruction_blocks=2, **chosen))
    plain = matrices(prune(make_model(), **{**chosen, "reconstruction": "none", "calibration": "sequential"}))
    assert all(torch.equal(untrained[name], plain[name]) for name in plain)
    model = make_model()
    prune(model, reconstruction_blocks=2)
    first, second = ["model.layers.0", "model.layers.1"], ["model.layers.2"]
    assert [blocks for blocks, _ in seen] == [first, second, first, second]
    assert [changed for _, changed in seen[2:]] == [{*first}, {*second}]


def test_blocks_beside_those_that_are_pruned_run_along() -> None:
    """Only the last block, or only the first one, of those that are trained together has weights to prune."""
    for left_out in (0, 1):
        model, before = make_model(), matrices(make_model())
        chosen: dict[str, Any] = {"sensitivity": "fisher", "reconstruction_held_out": 0.0}
        prune(model, exclude=(f"model.layers.{left_out}.*",), reconstruction_blocks=2, **chosen)
        changed = {
            name.split(".")[2] for name, matrix in matrices(model).items() if not torch.equal(matrix, before[name])
        }
        assert changed == {"0", "1", "2"} - {str(left_out)}
        record = sparsity_record(model)
        assert record is not None
        assert all(block.reconstruction.after < block.reconstruction.before for block in record.blocks)


@pytest.mark.parametrize("place", ["device", "cpu", "folder"])
def test_no_more_hidden_states_are_kept_than_are_needed(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of both models and, where blocks are trained together, those that enter the first of them."""
    train, alive, seen = BlockTrainer.train, weakref.WeakSet[Any](), []
    made = walk_module.BlockByBlock.__init__

    def noted(self: BlockTrainer, *args: Any) -> Any:
        seen.append(len(alive))
        return train(self, *args)

    def watched(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        store = self._store

        def kept() -> Any:
            states = store()
            alive.add(states)
            return states

        self._store = kept

    monkeypatch.setattr(BlockTrainer, "train", noted)
    monkeypatch.setattr(walk_module.BlockByBlock, "__init__", watched)
    where = str(tmp_path) if place == "folder" else place
    gc.collect()
    gc.disable()
    try:
        config = settings(reconstruction_blocks=2, reconstruction_epochs=1)
        model = LlamaForCausalLM(LlamaConfig(**{**make_model().config.to_dict(), "num_hidden_layers": 6}))
        grouped = MWandaPruner(config, progress=False, activations=where).prune(model, ROWS)
    finally:
        gc.enable()
    assert seen == [3, 3, 3]
    assert sparsity_record(grouped) is not None


PARTS: dict[str, list[list[str]]] = {
    "llama": [
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"],
        ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
    ],
    "opt": [["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"], ["fc1", "fc2"]],
    "t5": [
        ["layer.0.SelfAttention.q", "layer.0.SelfAttention.k", "layer.0.SelfAttention.v", "layer.0.SelfAttention.o"],
        ["layer.1.DenseReluDense.wi", "layer.1.DenseReluDense.wo"],
    ],
}


LAST_PARTS = {"llama": "mlp", "opt": "fc2", "t5": "layer.1"}


@pytest.mark.parametrize("family", PARTS)
def test_parts_are_children_of_the_block_and_matrices_between_them(family: str) -> None:
    blocks = find_blocks(FAMILIES[family].make())
    name, block = next(iter(blocks.items()))
    weights = find_weights(blocks)[name]
    regions = find_regions(block, weights, "part")
    found = [[weight.name.removeprefix(f"{name}.") for weight in region.weights] for region in regions]
    assert [sorted(part) for part in found] == [sorted(part) for part in PARTS[family]]
    assert regions[-1].module is block.get_submodule(LAST_PARTS[family])
    assert find_regions(block, weights, "block") == [(weights, None, None)]
    # What is found out about outputs before it is known in which order matrices run is for the same modules.
    assert watched_outputs(block, weights, "part") == [region.module for region in regions]
    assert watched_outputs(block, weights, "block") == [block]


def test_a_part_is_trained_behind_the_parts_before_it() -> None:
    """Attention does not know of the MLP, which reads what the trained attention gives."""
    options: dict[str, Any] = {"reconstruction_held_out": 0.0}  # one random text has nothing in common with another
    alone, both = (
        prune(make_model(), reconstruction_region="part", include=include, **options)
        for include in (("model.layers.1.self_attn.*",), ("model.layers.1.*",))
    )
    name = "model.layers.1.self_attn.o_proj"
    assert torch.equal(matrices(alone)[name], matrices(both)[name])
    whole = prune(make_model(), include=("model.layers.1.*",), **options)
    assert not torch.equal(matrices(whole)[name], matrices(both)[name])
    found = outcomes(both)
    assert all(each.after < each.before for each in found)


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("family", [name for name in (*TEN, "falcon") if FAMILIES[name].is_current])
def test_what_was_not_pruned_has_no_error(family: str, region: str) -> None:
    model = FAMILIES[family].make()
    config = settings(sparsity=0.0, **REGIONS[region])
    before = {name: values.clone() for name, values in model.state_dict().items()}
    MWandaPruner(config, progress=False).prune(model, FAMILIES[family].rows())
    assert all(each.before == 0 for each in outcomes(model))
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())


def test_masks_are_trained_and_values_stay() -> None:
    """Judged by the text that it is trained on, as one random text has nothing in common with another."""
    dense = matrices(make_model())
    fast = {"reconstruction_epochs": 4, "reconstruction_held_out": 0.0}
    start, model = (
        prune(make_model(), reconstruction="none", refinement=refinement, calibration="sequential", **fast)
        for refinement in ("none", "block")
    )
    moved = 0
    for name, matrix in matrices(model).items():
        stays = matrix != 0
        assert torch.equal(matrix[stays], dense[name][stays])
        moved += int((stays != (matrices(start)[name] != 0)).sum())
    assert moved
    assert all(each.after < each.before for each in outcomes(model))


def test_masks_are_trained_across_rows_where_the_whole_matrix_competes() -> None:
    chosen: dict[str, Any] = {"reconstruction": "none", "criterion": "magnitude", "allocation": "uniform"}
    model = prune(make_model(), refinement="block", group="matrix", **chosen)
    zeros = [(matrix == 0).sum(1) for matrix in matrices(model).values()]
    assert all(
        count.sum() == 0.5 * count.numel() * matrix.shape[1]
        for count, matrix in zip(zeros, matrices(model).values(), strict=True)
    )
    assert any(len(set(count.tolist())) > 1 for count in zeros)


@pytest.mark.parametrize("reconstruction", ["obs", "obs+block"])
def test_masks_are_not_trained_behind_new_values(reconstruction: str) -> None:
    with pytest.raises(ValueError, match=r"refinement='block' chooses masks for the values that the dense model has"):
        settings(refinement="block", reconstruction=reconstruction)
