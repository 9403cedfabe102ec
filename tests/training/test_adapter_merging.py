import copy
import math
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import peft
import pytest
import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from optimum_mwanda import mask_adapters, merge_preserving_masks, sparsity_record, verify_sparsity
from optimum_mwanda.training import adapter_merging
from tests.commands.conftest import run_here
from tests.conftest import make_model
from tests.families.matrix import FAMILIES
from tests.training.adapted import KINDS, TARGETS, adapt, logits, merged_by_peft, prune, train

# peft uses what transformers deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

CASES = [("llama", kind) for kind in KINDS] + [("gpt2", kind) for kind in ("lora", "dora")]


def plain(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model under an adapter, by their names without it."""
    return {name.replace(".base_layer", ""): each for name, each in model.state_dict().items() if "lora_" not in name}


def expect_masked(merged: nn.Module, by_peft: dict[str, Tensor], base: dict[str, Tensor]) -> None:
    """Every weight is what peft made of it, but for zeros: they are those of the base."""
    for name, found in merged.state_dict().items():
        expected, zeros = by_peft[name], base[name] == 0
        if any(part in name for part in ("proj", "c_attn", "c_fc")) and name.endswith("weight"):
            assert 0.4 < zeros.double().mean() < 0.6
            assert torch.equal(found == 0, zeros), name
            expected = expected.masked_fill(zeros, 0)
        # What happens to be zero with peft may be next to it.
        assert torch.allclose(found, expected, rtol=0, atol=1e-30), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("family", "kind"), CASES)
def test_merges_what_peft_merges_and_keeps_the_zeros(family: str, kind: str, dtype: torch.dtype) -> None:
    base = prune(make_model(family)).to(dtype)
    before, record = copy.deepcopy(base.state_dict()), sparsity_record(base)
    adapted = adapt(family, base, lora_dropout=0.1, **KINDS[kind])
    train(adapted)
    by_peft, target = merged_by_peft(adapted), TARGETS[family]
    model, report = merge_preserving_masks(adapted)
    expect_masked(model, by_peft, before)
    assert type(model) is type(base)
    assert verify_sparsity(model).ok
    assert sparsity_record(model) == record
    assert not [module for module in model.modules() if isinstance(module, LoraLinear)]
    assert len(report.matrices) == 3 * len(target)
    assert all(0.3 < matrix.error < 0.9 for matrix in report.matrices)
    # What was lost is what peft wrote where the zeros are.
    for matrix in report.matrices:
        lost = by_peft[f"{matrix.name}.weight"][before[f"{matrix.name}.weight"] == 0].norm().item()
        assert matrix.lost == pytest.approx(lost, rel=2e-2 if dtype == torch.bfloat16 else 1e-4)


def test_the_report_by_hand() -> None:
    adapted = adapt(target_modules=["q_proj"], layers_to_transform=[1], r=1, lora_alpha=3)
    layer = adapted.get_base_model().model.layers[1].self_attn.q_proj
    with torch.no_grad():  # 3 in the whole first column, nothing elsewhere
        layer.lora_A["default"].weight.copy_(torch.eye(1, 32))
        layer.lora_B["default"].weight.fill_(1)
    zeros = int((layer.weight[:, 0] == 0).sum())
    _, report = merge_preserving_masks(adapted)
    (matrix,) = report.matrices
    assert matrix.name == "model.layers.1.self_attn.q_proj"
    assert matrix.update == pytest.approx(3 * math.sqrt(32))
    assert matrix.lost == pytest.approx(3 * math.sqrt(zeros))
    assert report.error == matrix.error == pytest.approx(math.sqrt(zeros / 32))


def test_the_merged_model_is_saved_and_loaded_with_its_zeros(tmp_path: Path) -> None:
    adapted = adapt()
    train(adapted)
    model, _ = merge_preserving_masks(adapted)
    model.save_pretrained(tmp_path)
    assert verify_sparsity(tmp_path).ok
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_merging_without_masks_is_found_and_told_what_to_call(tmp_path: Path) -> None:
    adapted = adapt()
    train(adapted)
    model = adapted.merge_and_unload()
    found = verify_sparsity(model)
    assert len(found.lost) == 9
    assert "merge_preserving_masks(peft_model) instead" in str(found)
    model.save_pretrained(tmp_path)
    run = run_here("inspect", tmp_path)
    assert run.code == 4
    assert "merge_preserving_masks(peft_model) instead" in run.out


def test_the_sum_of_active_adapters_is_merged_and_others_are_left_out() -> None:
    adapted = adapt()
    for seed, name in enumerate(("second", "third")):
        torch.manual_seed(seed)
        adapted.add_adapter(name, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    train(adapted)
    adapted.base_model.set_adapter(["default", "second"])
    before, by_peft = copy.deepcopy(plain(adapted.get_base_model())), merged_by_peft(adapted)
    model, report = merge_preserving_masks(adapted)
    expect_masked(model, by_peft, before)
    assert len(report.matrices) == 9


def test_other_layers_are_merged_as_by_peft() -> None:
    adapted = adapt(target_modules=["q_proj", "embed_tokens"], modules_to_save=["lm_head"])
    train(adapted)
    before, by_peft = plain(adapted.get_base_model()), merged_by_peft(adapted)
    head = by_peft["lm_head.weight"].clone()
    model, report = merge_preserving_masks(adapted)
    assert torch.equal(model.lm_head.weight, head)
    assert torch.equal(model.model.embed_tokens.weight, by_peft["model.embed_tokens.weight"])
    assert not torch.equal(model.model.embed_tokens.weight, before["model.embed_tokens.weight"])
    assert verify_sparsity(model).ok
    assert [matrix.name.rpartition(".")[2] for matrix in report.matrices] == ["q_proj"] * 3


def test_a_pruned_matrix_that_was_trained_whole_is_masked() -> None:
    adapted = adapt(target_modules=["q_proj"], modules_to_save=["down_proj"])
    train(adapted)
    wrapper = adapted.get_base_model().model.layers[0].mlp.down_proj
    trained, base = wrapper.modules_to_save["default"].weight.clone(), wrapper.original_module.weight.clone()
    model, report = merge_preserving_masks(adapted)
    merged = model.model.layers[0].mlp.down_proj.weight
    assert torch.equal(merged, trained.masked_fill(base == 0, 0))
    assert verify_sparsity(model).ok
    found = {matrix.name: matrix for matrix in report.matrices}["model.layers.0.mlp.down_proj"]
    assert found.update == pytest.approx((trained - base).norm().item(), rel=1e-4)
    assert found.lost == pytest.approx(trained[base == 0].norm().item(), rel=1e-4)


def test_adapters_on_fused_experts_are_merged_with_the_mask() -> None:
    base = prune(next(family for family in FAMILIES.values() if family.name == "mixtral").make())
    before = copy.deepcopy(base.state_dict())
    parameters = [name for name, _ in base.named_parameters() if name.endswith(("gate_up_proj", "experts.down_proj"))]
    adapted = adapt(model=base, target_modules=["q_proj"], target_parameters=parameters, init_lora_weights=False)
    by_peft = merged_by_peft(adapted)
    model, report = merge_preserving_masks(adapted)
    assert verify_sparsity(model).ok
    assert {*parameters} < {matrix.name for matrix in report.matrices}
    for name in parameters:
        assert torch.equal(model.get_parameter(name), by_peft[name].masked_fill(before[name] == 0, 0))
        assert not torch.equal(model.get_parameter(name), before[name])


def test_a_wrapped_model_is_merged() -> None:
    model, report = merge_preserving_masks(nn.DataParallel(adapt(init_lora_weights=False)))
    assert verify_sparsity(model).ok
    assert report.error > 0.3


def test_biases_of_adapters_are_merged() -> None:
    adapted = adapt("gpt2", lora_bias=True)
    train(adapted)
    before, by_peft = plain(adapted.get_base_model()), merged_by_peft(adapted)
    model, _ = merge_preserving_masks(adapted)
    name = "transformer.h.0.attn.c_attn.bias"
    assert torch.equal(model.get_parameter(name), by_peft[name])
    assert not torch.equal(by_peft[name], before[name])


class TestRefused:
    """What cannot be merged with its masks is refused before anything changes."""

    def expect(self, adapted: Any, words: str, kind: type[Exception] = ValueError) -> None:
        before = copy.deepcopy(adapted.state_dict())
        modules = dict(adapted.named_modules())
        for refuse in (merge_preserving_masks, mask_adapters):
            with pytest.raises(kind, match=words):
                refuse(adapted)
            assert dict(adapted.named_modules()) == modules
            after = adapted.state_dict()
            assert all(torch.equal(before[name], after[name]) for name in before)
            assert not any(layer.lora_variant for layer in modules.values() if isinstance(layer, LoraLinear))

    def test_a_model_without_an_adapter(self) -> None:
        self.expect(prune(make_model()), "is a LlamaForCausalLM: give the PeftModel", TypeError)

    @pytest.mark.parametrize("refuse", [merge_preserving_masks, mask_adapters])
    def test_what_is_no_model(self, refuse: Any) -> None:
        with pytest.raises(TypeError, match="peft_model is a str: give the PeftModel"):
            refuse("adapter")

    def test_a_dense_model(self) -> None:
        self.expect(adapt(model=make_model()), "LlamaForCausalLM, has no sparsity record.*merge_and_unload")

    def test_a_record_of_other_weights(self) -> None:
        base = prune(make_model())
        with torch.no_grad():
            base.model.layers[0].mlp.up_proj.weight.fill_(1)
        self.expect(adapt(model=base), "not those that their sparsity record describes.*load the pruned checkpoint")

    def test_an_initialisation_that_changes_the_weights(self) -> None:
        self.expect(adapt(init_lora_weights="pissa"), "PiSSA and other initialisations")

    def test_quantized_weights(self) -> None:
        adapted = adapt()
        packed = torch.zeros(4, 4, dtype=torch.int8)
        adapted.get_base_model().model.layers[0].mlp.up_proj.weight = nn.Parameter(packed, requires_grad=False)
        self.expect(adapted, r"not plain weights.*'model.layers.0.mlp.up_proj' is quantized \(torch.int8, Linear\)")

    def test_shared_out_weights(self) -> None:
        adapted = adapt()
        adapted.get_base_model().lm_head.weight.full_tensor = None  # as the tensors of FSDP2 have it
        self.expect(adapted, "shared out among processes: save the adapter")

    def test_adapters_of_another_type(self) -> None:
        base = prune(make_model())
        loha = peft.get_peft_model(base, peft.LoHaConfig(target_modules=["q_proj"], r=2))
        self.expect(loha, "'default' is of type LOHA.*DoRA or rsLoRA")

    def test_adapters_that_change_no_weights(self) -> None:
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
        self.expect(peft.get_peft_model(prune(make_model()), config), "of type PROMPT_TUNING")

    def test_variants_that_are_not_known(self) -> None:
        adapted = adapt(target_modules=["q_proj"], alora_invocation_tokens=[1], task_type="CAUSAL_LM")
        with pytest.raises(ValueError, match="is computed by ALoraLinearVariant of peft: masks can be kept for LoRA"):
            merge_preserving_masks(adapted)

    def test_layers_that_are_not_known(self) -> None:
        class Own(nn.Module, LoraLayer):
            def __init__(self, base: nn.Module, adapter: str, r: int, lora_alpha: int, config: Any, **_: Any) -> None:
                nn.Module.__init__(self)
                LoraLayer.__init__(self, base)
                self.update_layer(adapter, r, lora_alpha=lora_alpha, config=config)

        config = peft.LoraConfig(target_modules=["q_proj"])
        config._register_custom_module({nn.Linear: Own})
        adapted = peft.get_peft_model(prune(make_model()), config)
        self.expect(adapted, "on 'model.layers.0.self_attn.q_proj' is of the class Own.*leave it out of target_modules")

    def test_merged_adapters(self) -> None:
        adapted = adapt(init_lora_weights=False)
        adapted.merge_adapter()
        self.expect(adapted, "'default' are merged into the weights already.*unmerge_adapter")

    def test_replicated_layers(self) -> None:
        adapted = adapt(layer_replication=[(0, 3), (1, 3)])
        self.expect(adapted, "Several layers of the adapter share 'model.layers.1.self_attn.q_proj'")

    def test_several_adapters_with_dora(self) -> None:
        adapted = adapt(use_dora=True)
        adapted.add_adapter("second", peft.LoraConfig(r=2, target_modules=["q_proj"]))
        adapted.base_model.set_adapter(["default", "second"])
        with pytest.raises(ValueError, match=r"'model.layers.0.self_attn.q_proj', default, second.*set_adapter"):
            merge_preserving_masks(adapted)

    def test_values_that_are_not_finite(self) -> None:
        adapted = adapt(init_lora_weights=False)
        layer = adapted.get_base_model().model.layers[2].mlp.down_proj
        with torch.no_grad():
            layer.lora_B["default"].weight[0, 0] = torch.nan
        with pytest.raises(ValueError, match=r"'model.layers.2.mlp.down_proj' is not finite"):
            merge_preserving_masks(adapted)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_merge_that_fails_half_way_leaves_the_model_as_it_was(
    kind: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = adapt(modules_to_save=["lm_head"], **KINDS[kind])
    train(adapted)
    before, outputs, modules = copy.deepcopy(adapted.state_dict()), logits(adapted), dict(adapted.named_modules())
    merge, calls = LoraLinear.merge, []

    def fail(layer: Any, *args: Any, **kwargs: Any) -> None:
        calls.append(layer)
        if len(calls) == 5:
            raise error
        merge(layer, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(LoraLinear, "merge", fail)
        with pytest.raises(error):
            merge_preserving_masks(adapted)
    assert dict(adapted.named_modules()) == modules
    after = adapted.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(logits(adapted), outputs)
    assert not any(layer.merged for layer in modules.values() if isinstance(layer, LoraLinear))
    model, _ = merge_preserving_masks(adapted)
    assert verify_sparsity(model).ok


@pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied")
def test_a_merge_that_fails_in_its_last_step_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = adapt("gpt2", modules_to_save=["lm_head"])  # peft unties the head from the embeddings
    train(adapted)
    inner = adapted.get_base_model()
    before, outputs = copy.deepcopy(adapted.state_dict()), logits(adapted)
    config, adapters = inner.config.to_dict(), dict(inner.peft_config)
    with monkeypatch.context() as patch:
        patch.setattr(adapter_merging, "keep_zeros", Mock(side_effect=MemoryError))
        with pytest.raises(MemoryError):
            merge_preserving_masks(adapted)
    assert inner.config.to_dict() == config
    assert inner.peft_config == adapted.peft_config == adapters
    after = adapted.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(logits(adapted), outputs)
    model, _ = merge_preserving_masks(adapted)
    assert verify_sparsity(model).ok
