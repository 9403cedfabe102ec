from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaModel, PreTrainedModel

from optimum_mwanda import MWandaConfig, MWandaPruner, prune_checkpoint
from optimum_mwanda.calibration.row_sensitivities import RowCollector
from optimum_mwanda.data.chunks import CalibrationChunks, build_chunks
from optimum_mwanda.modeling import output_gradients
from optimum_mwanda.modeling.blocks import find_blocks
from optimum_mwanda.modeling.weights import Weights, find_weights, flat
from optimum_mwanda.walking.differentiating import Differentiated, differentiate, likelihood_gradient
from tests.conftest import SIZES, assert_untouched, make_model, make_rows, state_of
from tests.families.family import LENGTH, Family
from tests.families.matrix import FAMILIES

CONFIG = MWandaConfig(sensitivity="fisher", refinement="swap", sequence_length=LENGTH, batch_size=2)
# Hooks see what is changed in place, fused projections, transposed ones, soft-capped logits, layers that share keys and
# values, states of a scan, dense parts beside fused experts, and experts that no token reaches.
CHOSEN = ("llama", "gpt2", "falcon", "gemma2", "gemma4_text", "jamba", "mixtral", "t5", "nllb-moe", "gemma3")


def open_family(family: Family) -> tuple[PreTrainedModel, Weights, CalibrationChunks]:
    model = family.make()
    found = find_weights(find_blocks(model))
    weights = {name: [weight for weight in block if weight.expert is None] for name, block in found.items()}
    return model, weights, build_chunks(family.rows(), CONFIG, model)


def plain_gradients(
    model: PreTrainedModel, weights: Weights, chunks: CalibrationChunks
) -> dict[str, dict[str, list[Tensor]]]:
    """Name of a weight to language to the gradients at its outputs, by plain autograd."""
    found: dict[str, dict[str, list[Tensor]]] = {}
    outputs: list[tuple[str, Tensor]] = []

    def keep(name: str) -> Callable[..., None]:
        def look(_: object, __: object, output: Tensor) -> None:
            output.retain_grad()
            outputs.append((name, output))

        return look

    handles = [weight.module.register_forward_hook(keep(weight.name)) for weight in flat(weights)]
    for language, batch in chunks.batches(2):
        outputs.clear()
        logits = model(**batch, use_cache=False).logits
        logits, wanted = (logits, batch["labels"]) if "labels" in batch else (logits[:, :-1], batch["input_ids"][:, 1:])
        cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum").backward()
        for name, output in outputs:
            if output.grad is not None:
                found.setdefault(name, {}).setdefault(language, []).append(output.grad.flatten(0, -2))
    for handle in handles:
        handle.remove()
    model.zero_grad()
    return found


@pytest.mark.parametrize("name", [name for name in CHOSEN if FAMILIES[name].is_current])
def test_sensitivities_are_those_of_plain_autograd(name: str) -> None:
    model, weights, chunks = open_family(FAMILIES[name])
    expected = plain_gradients(model, weights, chunks)
    before = state_of(model)
    found = differentiate(model, weights, chunks, CONFIG)
    assert_untouched(model, before, training=False)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any("forward" in vars(module) for module in model.modules())
    for weight in flat(weights):
        rows = torch.zeros(len(chunks.chunks), weight.out_features)
        factor = torch.zeros(weight.out_features, weight.out_features)
        for number, language in enumerate(chunks.chunks):
            if gradients := expected.get(weight.name, {}).get(language):
                gradient = torch.cat(gradients)
                rows[number] = gradient.square().sum(0)
                factor += gradient.T @ gradient / gradient.square().sum().clamp(min=1e-30) / len(chunks.chunks)
        scale = float(rows.max()) or 1.0
        torch.testing.assert_close(found.rows[weight.name].float() / scale, rows / scale, rtol=1e-3, atol=1e-6)
        if rows.any():
            torch.testing.assert_close(found.factors[weight.name], factor, rtol=1e-3, atol=1e-6)


def run(model: PreTrainedModel, config: MWandaConfig = CONFIG) -> Differentiated:
    weights = find_weights(find_blocks(model))
    return differentiate(model, weights, build_chunks(make_rows(length=LENGTH), config, model), config)


def test_blocks_run_once_more_and_keep_nothing_meanwhile() -> None:
    kept = []
    for count in (1, 3):
        model, runs, sizes = make_model(), Counter[str](), Counter[int]()
        del model.model.layers[count:]
        for name, block in find_blocks(model).items():
            block.mlp.register_forward_pre_hook(lambda *_, name=name, runs=runs: runs.update([name]))  # type: ignore
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: (sizes.update([x.numel()]), x)[1], lambda x: x
        ):
            run(model)
        assert runs == dict.fromkeys(find_blocks(model), 2 * 6)  # three languages of two batches
        kept.append(sizes)
    assert kept[1] - kept[0] == {2 * LENGTH * SIZES["hidden_size"]: 2 * 6}  # what enters two more blocks


def test_gradient_of_the_likelihood_leaves_out_what_does_not_count() -> None:
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    wanted = torch.tensor([[1, 2, -100, 6, 0], [3, -100, -100, 5, -100]])
    (3 * cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum")).backward()
    assert logits.grad is not None
    torch.testing.assert_close(likelihood_gradient(logits.detach(), wanted, 3.0), logits.grad)


def test_float16_gradients_that_overflow_are_taken_again_at_a_smaller_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(make_model()).rows
    for scales in ((2.0**12, 1.0), (1e7, 2.0**8)):
        monkeypatch.setattr(output_gradients, "_SCALES", scales)
        found = run(make_model().half()).rows
        for name, rows in expected.items():
            torch.testing.assert_close(found[name].sum(1), rows.sum(1), rtol=0.05, atol=0)
    monkeypatch.setattr(output_gradients, "_SCALES", (1e7,))
    with pytest.raises(
        FloatingPointError, match=r"outputs of 'model\.layers.*in language 'en': run the model in a wider"
    ):
        run(make_model().half())


@pytest.mark.parametrize("error", [ValueError("stop"), KeyboardInterrupt()])
def test_failure_leaves_the_model_as_it_was(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    model.lm_head.weight.requires_grad_(False)
    before, seen = state_of(model), []

    def fail(self: RowCollector, name: str, gradient: Tensor) -> None:
        seen.append(name)
        if len(seen) == 5:
            raise error

    monkeypatch.setattr(RowCollector, "_add", fail)
    with pytest.raises(type(error)):
        run(model)
    assert_untouched(model, before)
    assert not any("forward" in vars(module) for module in model.modules())
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["lm_head.weight"]


def prune(model: PreTrainedModel, rows: object = None) -> None:
    MWandaPruner(CONFIG, progress=False).prune(model, rows or make_rows(length=LENGTH))


def test_models_without_a_likelihood_of_text_are_refused() -> None:
    headless = LlamaModel(make_model().config)
    with pytest.raises(ValueError, match=r"needs the likelihood of text\. LlamaModel predicts no tokens"):
        prune(headless)
    family = FAMILIES["bert"] if "bert" in FAMILIES else next(f for f in FAMILIES.values() if f.kind == "encoder")
    with pytest.raises(ValueError, match="is a masked language model"):
        prune(family.make(), family.rows())


def test_models_that_are_not_in_memory_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "dense")
    with pytest.raises(ValueError, match="must be in memory, but parts of it are offloaded"):
        prune_checkpoint(
            tmp_path / "dense", tmp_path / "pruned", CONFIG, make_rows(length=LENGTH), progress=False, device="cpu"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_fused_experts_are_refused_and_what_is_beside_them_is_not() -> None:
    family = FAMILIES["mixtral"]
    with pytest.raises(ValueError, match=r"outputs of fused experts such as 'model\.layers\.0\.mlp\.experts.*exclude="):
        prune(family.make(), family.rows())
    model = family.make()
    config = CONFIG.replace(exclude=("*.experts.*",))
    MWandaPruner(config, progress=False).prune(model, family.rows())
    assert (model.model.layers[0].self_attn.q_proj.weight == 0).any()
