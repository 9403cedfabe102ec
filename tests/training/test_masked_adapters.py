import copy
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from optimum_mwanda import MWandaCallback, mask_adapters, merge_preserving_masks, verify_sparsity
from optimum_mwanda.training.adapter_updates import adapter_update
from tests.conftest import make_model
from tests.families.matrix import FAMILIES
from tests.training.adapted import IDS, KINDS, adapt, logits, prune, train

# peft uses what transformers deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

CASES = [("llama", kind) for kind in KINDS] + [("gpt2", kind) for kind in ("lora", "dora")]


def a_layer(adapted: Any) -> Any:
    return adapted.get_base_model().model.layers[1].self_attn.q_proj


def gradients(adapted: nn.Module) -> dict[str, Tensor]:
    adapted.zero_grad()
    adapted(input_ids=IDS, labels=IDS).loss.backward()
    return {name: each.grad.clone() for name, each in adapted.named_parameters() if each.requires_grad}


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_what_is_trained_under_masks_is_merged_exactly(family: str, kind: str) -> None:
    adapted = adapt(family, lora_dropout=0.1, **KINDS[kind])
    mask_adapters(adapted)
    losses = train(adapted)
    assert losses[-1] < losses[0] - 0.05
    before, by_peft = logits(adapted), copy.deepcopy(adapted).merge_and_unload()
    model, report = merge_preserving_masks(adapted)
    torch.testing.assert_close(logits(model), before, atol=1e-6, rtol=1e-5)
    assert report.error == 0
    assert all(matrix.update > 0 and matrix.lost == 0 for matrix in report.matrices)
    assert verify_sparsity(model).ok
    # peft itself merges the same, as the masks are in the adapter.
    assert verify_sparsity(by_peft).ok
    assert torch.equal(logits(by_peft), logits(model))


@pytest.mark.parametrize("name", ["falcon", "gpt_oss", "t5", "gemma3"])
def test_the_merge_is_exact_in_other_families(name: str) -> None:
    family = next(family for family in FAMILIES.values() if family.name == name)
    if not family.is_current:
        pytest.skip("this transformers has another layout")
    base = prune(family.make())
    linear = {path for path, module in base.named_modules() if isinstance(module, nn.Linear)} & family.pruned
    adapted = adapt(model=base, target_modules=sorted(linear), init_lora_weights=False).eval()
    mask_adapters(adapted)
    (batch, *_), inner = family.batches(), adapted.get_base_model()
    with torch.no_grad():
        before = inner(**batch).logits
        model, report = merge_preserving_masks(adapted)
        torch.testing.assert_close(model(**batch).logits, before, atol=1e-5, rtol=1e-4)
    assert len(report.matrices) == len(linear) > 3
    assert report.error == 0
    assert verify_sparsity(model).ok


def test_without_masks_the_merge_is_not_exact() -> None:
    adapted = adapt()
    train(adapted)
    before = logits(adapted)
    model, _ = merge_preserving_masks(adapted)
    assert (logits(model) - before).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_flow_only_through_kept_entries(kind: str) -> None:
    adapted = adapt(target_modules=["q_proj"], init_lora_weights=False, **KINDS[kind])
    mask_adapters(adapted)
    layer = a_layer(adapted)
    first, second = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x, given = torch.randn(5, 32), torch.randn(5, 32)
    (layer(x) * given).sum().backward()
    weight, scaling = layer.weight.detach(), layer.scaling["default"]
    # The gradient of the masked product: that of its entries, without the pruned ones.
    inner = given.T @ x
    if kind == "dora":
        changed = weight + (scaling * second @ first).detach().masked_fill(weight == 0, 0)
        factor = layer.lora_magnitude_vector["default"].weight.detach() / changed.norm(dim=1)
        inner = inner * factor[:, None]
    inner = scaling * inner.masked_fill(weight == 0, 0)
    torch.testing.assert_close(first.grad, second.detach().T @ inner, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(second.grad, inner @ first.detach().T, atol=1e-4, rtol=1e-4)


def test_an_adapter_that_reaches_only_pruned_entries_does_nothing() -> None:
    adapted = adapt(target_modules=["q_proj"], r=1)
    before = logits(adapted)
    for block in adapted.get_base_model().model.layers:
        layer = block.self_attn.q_proj
        with torch.no_grad():
            layer.lora_A["default"].weight.copy_((layer.weight[:1] == 0).float())
            layer.lora_B["default"].weight.copy_(100 * torch.eye(1, 32).T)
    assert not torch.allclose(logits(adapted), before)
    mask_adapters(adapted)
    assert torch.equal(logits(adapted), before)
    assert not any(each.any() for name, each in gradients(adapted).items() if "lora_B" in name and each.shape[0] == 1)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_dropout_is_on_what_enters_the_adapter(kind: str) -> None:
    adapted = adapt(target_modules=["q_proj"], init_lora_weights=False, lora_dropout=0.5, **KINDS[kind])
    mask_adapters(adapted)
    layer, x = a_layer(adapted), torch.randn(5, 32)
    merged = copy.deepcopy(layer)
    merged.merge()
    update = merged.weight - layer.weight
    layer.train()
    torch.manual_seed(0)
    found = layer(x)
    torch.manual_seed(0)
    expected = layer.base_layer(x) + nn.functional.dropout(x, 0.5) @ update.T
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_nothing_as_large_as_the_matrix_is_kept_for_gradients(kind: str) -> None:
    adapted = adapt(target_modules=["q_proj"], **KINDS[kind])
    mask_adapters(adapted)
    layer, kept = a_layer(adapted), []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        layer(torch.randn(5, 32)).sum().backward()
    assert kept
    assert all(each.data_ptr() == layer.weight.data_ptr() or each.numel() < layer.weight.numel() for each in kept)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_gradient_checkpointing_gives_the_same_gradients(kind: str, use_reentrant: bool) -> None:
    adapted = adapt(init_lora_weights=False, **KINDS[kind])
    mask_adapters(adapted)
    adapted.train()
    expected = gradients(adapted)
    adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    adapted.enable_input_require_grads()
    found = gradients(adapted)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_bf16(kind: str, dtype: torch.dtype) -> None:
    adapted = adapt(model=prune(make_model()).to(dtype), **KINDS[kind])
    mask_adapters(adapted)
    losses = train(adapted, steps=6, enabled=dtype == torch.float32)
    assert losses[-1] < losses[0] - 0.05
    before = logits(adapted)
    model, report = merge_preserving_masks(adapted)
    assert report.error == 0
    assert verify_sparsity(model).ok
    torch.testing.assert_close(
        logits(model), before, **({} if dtype == torch.float32 else {"atol": 0.02, "rtol": 0.02})
    )


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_autocast_does_not_round_what_is_added_to_the_weights(kind: str) -> None:
    layer = a_layer(adapt(init_lora_weights=False, **KINDS[kind]))
    with torch.autocast("cpu", torch.bfloat16):
        found = adapter_update(layer, "default", is_masked=True)
    assert torch.equal(found, adapter_update(layer, "default", is_masked=True))


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_saved_adapter_is_masked_again_after_loading(kind: str, tmp_path: Path) -> None:
    adapted = adapt(**KINDS[kind])
    base = copy.deepcopy(adapted).unload()
    mask_adapters(adapted)
    train(adapted)
    adapted.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    assert not torch.allclose(logits(loaded), logits(adapted))
    mask_adapters(loaded)
    assert torch.equal(logits(loaded), logits(adapted))
    model, report = merge_preserving_masks(loaded)
    torch.testing.assert_close(logits(model), logits(adapted), atol=1e-6, rtol=1e-5)
    assert report.error == 0


@pytest.mark.parametrize("kind", KINDS)
def test_is_taken_back(kind: str) -> None:
    adapted = adapt(init_lora_weights=False, **KINDS[kind])
    before, variants = logits(adapted), dict(a_layer(adapted).lora_variant)
    masked = mask_adapters(adapted)
    assert not torch.allclose(logits(adapted), before)
    masked.close()
    assert a_layer(adapted).lora_variant == variants
    assert torch.equal(logits(adapted), before)
    masked.close()


def test_to_mask_twice_is_to_mask_once() -> None:
    adapted = adapt(use_dora=True, init_lora_weights=False)
    before = logits(adapted)
    mask_adapters(adapted)
    once = logits(adapted)
    masked = mask_adapters(adapted)
    assert torch.equal(logits(adapted), once)
    masked.close()
    assert torch.equal(logits(adapted), before)


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_merged_and_unmerged_in_place(kind: str, safe: bool) -> None:
    adapted = adapt(init_lora_weights=False, **KINDS[kind])
    masked = mask_adapters(adapted)
    before, outputs = copy.deepcopy(adapted.state_dict()), logits(adapted)
    adapted.merge_adapter(safe_merge=safe)
    torch.testing.assert_close(logits(adapted), outputs, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match=r"merged into 'model.layers.0.self_attn.q_proj', .*unmerge_adapter"):
        masked.close()
    adapted.unmerge_adapter()
    after = adapted.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_base_model_is_still_there() -> None:
    adapted = adapt(init_lora_weights=False)
    before = logits(copy.deepcopy(adapted).unload())
    mask_adapters(adapted)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), before)


def test_each_row_of_a_batch_may_have_its_own_adapter() -> None:
    adapted = adapt(init_lora_weights=False).eval()
    adapted.add_adapter("second", peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    mask_adapters(adapted)
    rows = logits(adapted, adapter_names=["default", "second"])
    for row, name in enumerate(("default", "second")):
        adapted.set_adapter(name)
        torch.testing.assert_close(rows[row], logits(adapted)[row], atol=1e-6, rtol=1e-5)


def test_biases_of_adapters_are_merged_too() -> None:
    adapted = adapt("gpt2", lora_bias=True)
    mask_adapters(adapted)
    train(adapted)
    before = logits(adapted)
    model, _ = merge_preserving_masks(adapted)
    torch.testing.assert_close(logits(model), before, atol=1e-6, rtol=1e-5)


def test_several_active_adapters_are_merged_exactly() -> None:
    adapted = adapt(init_lora_weights=False).eval()
    adapted.add_adapter("second", peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.base_model.set_adapter(["default", "second"])
    mask_adapters(adapted)
    before = logits(adapted)
    model, report = merge_preserving_masks(adapted)
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-4)
    assert report.error == 0


def test_dora_is_not_merged_onto_another_adapter_unnoticed() -> None:
    adapted = adapt(use_dora=True)
    adapted.add_adapter("second", peft.LoraConfig(r=2, target_modules=["q_proj"]))
    mask_adapters(adapted)
    with pytest.raises(RuntimeError, match="merge one adapter at a time"):
        adapted.merge_adapter(["second", "default"])


def test_a_row_of_zeros_stays_zero_with_dora() -> None:
    base = make_model()
    with torch.no_grad():
        base.model.layers[1].self_attn.q_proj.weight[3] = 0
    adapted = adapt(model=prune(base), use_dora=True)
    mask_adapters(adapted)
    losses = train(adapted)
    assert losses[-1] < losses[0]
    model, _ = merge_preserving_masks(adapted)
    assert not model.model.layers[1].self_attn.q_proj.weight[3].any()


def test_a_trainer_trains_saves_and_resumes(tmp_path: Path) -> None:
    def trainer() -> Trainer:
        adapted = adapt(target_modules="all-linear", lora_dropout=0.1)
        mask_adapters(adapted)
        rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(3, 90, (8, 12)).tolist()]
        settings = TrainingArguments(
            str(tmp_path),
            max_steps=4,
            per_device_train_batch_size=2,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            gradient_checkpointing=True,
            bf16=True,
            use_cpu=True,
            save_steps=2,
            report_to="none",
            disable_tqdm=True,
        )
        return Trainer(adapted, settings, train_dataset=rows)

    whole, resumed = trainer(), trainer()
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    # Without the bf16 of the trainer, which rounds what the adapter adds and the merged weights differently.
    adapted = whole.accelerator.unwrap_model(whole.model, keep_fp32_wrapper=False).eval()
    before = logits(adapted)
    model, report = merge_preserving_masks(adapted)
    torch.testing.assert_close(logits(model), before, atol=1e-6, rtol=1e-5)
    assert report.error == 0
    assert report.total.update > 0.1
    assert verify_sparsity(model).ok
    again, _ = merge_preserving_masks(resumed.model)
    assert all(torch.equal(each, again.state_dict()[name]) for name, each in model.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "is_masked", "warning"),
    [
        ({"target_modules": ["q_proj"]}, True, None),
        ({"target_modules": ["q_proj"]}, False, r"call mask_adapters\(peft_model\) before the training"),
        ({"target_modules": ["lm_head"]}, False, None),
    ],
)
def test_training_an_adapter_that_would_lose_zeros_is_warned_of(
    settings: dict[str, Any], is_masked: bool, warning: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapted = adapt(**settings)
    if is_masked:
        mask_adapters(adapted)
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(3, 90, (4, 12)).tolist()]
    arguments = TrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True)
    Trainer(adapted, arguments, train_dataset=rows, callbacks=[MWandaCallback()]).train()
    found = [record.getMessage() for record in caplog.records if record.name.startswith("optimum_mwanda")]
    assert len(found) == (warning is not None)
    assert warning is None or re.search(warning, found[0])


class TestRefused:
    """What cannot be masked is refused, and nothing is masked; more of it is refused as for merges."""

    def expect(self, adapted: Any, words: str) -> None:
        before = logits(adapted.eval())
        with pytest.raises(ValueError, match=words):
            mask_adapters(adapted)
        assert torch.equal(logits(adapted), before)

    def test_other_modules(self) -> None:
        adapted = adapt(target_modules=["lm_head"], init_lora_weights=False)
        self.expect(
            adapted, "on none of the pruned matrices, 'model.layers.0.self_attn.q_proj', .* choose target_modules"
        )

    def test_matrices_that_are_trained_whole(self) -> None:
        adapted = adapt(target_modules=["q_proj"], init_lora_weights=False, modules_to_save=["down_proj"])
        self.expect(adapted, "modules_to_save trains pruned matrices as a whole, 'model.layers.0.mlp.down_proj', ")

    def test_fused_experts(self) -> None:
        base = prune(next(family for family in FAMILIES.values() if family.name == "mixtral").make())
        name = "model.layers.0.mlp.experts.down_proj"
        adapted = adapt(model=base, target_modules=["q_proj"], target_parameters=[name], init_lora_weights=False)
        self.expect(adapted, f"'{name}', cannot be masked while they are trained: leave them out of target_parameters")
