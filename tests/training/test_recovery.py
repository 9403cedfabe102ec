"""`recover`: every recipe trains, keeps the zeros, and gives the model back in its own form."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from optimum_mwanda import MWandaConfig, MWandaPruner, read_masks, recover, sparsity_record, verify_sparsity
from optimum_mwanda.evaluation.report import LanguageScore, PerplexityComparison, PerplexityReport
from optimum_mwanda.training.distillation_trainer import LOSS_WEIGHT, DistillationTrainer
from optimum_mwanda.training.lent_model import lent_to_training
from optimum_mwanda.training.recovery_settings import RECIPE_OF, RecoverySettings

from ..conftest import assert_untouched, has_hooks, make_model, make_rows, state_of

SMALL: dict[str, Any] = {"tokens": 96, "sequence_length": 16, "batch_size": 2, "progress": False}
RECIPES = ("masks", "distill", "lora")


def prune(dtype: torch.dtype = torch.float32, family: str = "llama") -> PreTrainedModel:
    model = make_model(family).to(dtype).eval()
    config = MWandaConfig(sparsity=0.5, criterion="magnitude", allocation="uniform")
    return MWandaPruner(config, progress=False).prune(model)


def words(recipe: str) -> dict[str, Any]:
    if recipe == "lora":
        pytest.importorskip("peft", reason="peft is not installed")
    return {"recipe": recipe, **({"teacher": make_model()} if recipe == "distill" else {})}


def losses(**pruned: float) -> PerplexityComparison:
    """A report in which the dense model has a loss of 2 in all languages."""

    def report(nlls: dict[str, float]) -> PerplexityReport:
        scores = {name: LanguageScore(name, 100, nll, 400) for name, nll in nlls.items()}
        return PerplexityReport(scores, "tiny", 16)

    return PerplexityComparison(report(dict.fromkeys(pruned, 2.0)), {"pruned": report(pruned)})


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_changes_what_is_not_pruned_and_nothing_else(recipe: str) -> None:
    model = prune()
    masks, before = read_masks(model), state_of(model)
    recovery = recover(model, make_rows(), **words(recipe), **SMALL)
    assert recovery.model is model
    assert recovery.steps == 3
    assert verify_sparsity(model).ok
    for name, pruned in masks.items():
        old, new = before[f"{name}.weight"], model.get_submodule(name).weight
        assert torch.equal(new == 0, pruned)
        assert not torch.equal(old, new), name
    record = sparsity_record(model)
    assert record is not None
    assert [(entry.recipe, entry.steps) for entry in record.training] == [(recipe, 3)]
    assert (recovery.merge is not None) is (recipe == "lora")
    assert recovery.merge is None or recovery.merge.error == 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_model_comes_back_in_its_own_form(recipe: str) -> None:
    model = prune()
    model.model.norm.weight.requires_grad_(False)
    model.model.norm.train()
    names = list(model.state_dict())
    recover(model, make_rows(), **words(recipe), **SMALL)
    assert list(model.state_dict()) == names
    assert [name for name, each in model.named_parameters() if not each.requires_grad] == ["model.norm.weight"]
    assert [name for name, module in model.named_modules() if module.training] == ["model.norm"]
    assert not has_hooks(model)
    assert not hasattr(model, "peft_config")


@pytest.mark.parametrize(
    ("recipe", "dtype"),
    [
        ("masks", torch.float16),
        ("distill", torch.bfloat16),
        ("lora", torch.bfloat16),
        ("rigl", torch.bfloat16),
        ("lisa", torch.float16),
    ],
    ids=str,
)
def test_short_types_are_trained_in_float32_and_come_back(recipe: str, dtype: torch.dtype) -> None:
    model = prune(dtype)
    seen = set()

    def look(module: torch.nn.Module, *_: Any) -> None:
        seen.add(module.weight.dtype)

    handle = model.model.norm.register_forward_hook(look)
    recover(model, make_rows(), **words(recipe), **SMALL)
    handle.remove()
    assert seen == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert verify_sparsity(model).ok


@pytest.mark.parametrize("recipe", RECIPES)
def test_model_trained_with_bf16_computes_in_its_own_type_afterwards(recipe: str) -> None:
    model, fresh, ids = prune(), make_model().eval(), torch.arange(3, 19)[None]
    given = words(recipe)
    recover(model, make_rows(), **given, **SMALL, bf16=True)
    for each in filter(None, (model, given.get("teacher"))):
        fresh.load_state_dict(each.state_dict())
        with torch.no_grad():
            assert torch.equal(each.eval()(ids).logits, fresh(ids).logits)


def test_steps_that_bfloat16_cannot_tell_apart_add_up() -> None:
    """A step of 1e-6 is lost beside a weight of 0.02, however often it is taken."""
    model = prune(torch.bfloat16)
    weight = model.model.layers[0].mlp.up_proj.weight
    before = weight.detach().clone()
    with lent_to_training(model, read_masks(model)), torch.no_grad():
        for _ in range(2000):
            weight.add_(1e-6)
    assert (weight != before).float().mean() > 0.45


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_weight_that_becomes_zero_does_not_count_as_pruned(dtype: torch.dtype) -> None:
    model = prune(dtype)
    masks = read_masks(model)
    name, pruned = next(iter(masks.items()))
    weight = model.get_submodule(name).weight
    with lent_to_training(model, masks), torch.no_grad():
        weight[~pruned] = 1e-30 if dtype == torch.float16 else 0
    assert torch.equal(weight == 0, pruned)
    assert weight.abs().max() == torch.finfo(dtype).tiny
    assert verify_sparsity(model).ok


@pytest.mark.parametrize("recipe", RECIPES)
def test_error_in_the_training_leaves_types_and_layers_as_they_were(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = prune(torch.bfloat16)
    masks, given, names = read_masks(model), words(recipe), list(model.state_dict())
    monkeypatch.setattr(torch.optim.AdamW, "step", stop)
    with pytest.raises(RuntimeError, match="stopped"):
        recover(model, make_rows(), **given, **SMALL)
    assert list(model.state_dict()) == names
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not has_hooks(model)
    assert not hasattr(model, "peft_config")
    assert all(torch.equal(model.get_submodule(name).weight == 0, pruned) for name, pruned in masks.items())


def stop(*_: Any, **__: Any) -> None:
    raise RuntimeError("stopped")


@pytest.mark.parametrize("recipe", RECIPES)
def test_diverged_training_is_an_error(recipe: str) -> None:
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        recover(prune(), make_rows(), **words(recipe), **SMALL, learning_rate=1e19)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recipe": "sparsely"}, "recipe='sparsely' is not known. Choose one of: 'masks', 'distill', 'lora'"),
        ({"recipe": "gradual"}, "give GradualPruningCallback to a Trainer"),
        ({"recipe": "distill", "lora_rank": 4}, "lora_rank belongs to recipe='lora', but recipe='distill'"),
        ({"rigl_alpha": 0.1}, "rigl_alpha belongs to recipe='rigl', but recipe='masks'"),
        ({"recipe": "distill"}, "recipe='distill' needs a dense model: give teacher="),
        ({"teacher": make_model()}, "recipe='masks' takes no dense model: give teacher="),
        ({"mix": "need"}, "give report="),
        ({"mix": "sometimes"}, "mix='sometimes' is not known"),
        ({"tokens": 0}, "tokens=0"),
        ({"tokens": 1e6}, "tokens=1000000.0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"recipe": "lisa", "lisa_blocks": 4}, "lisa_blocks=4 is not allowed: the model has 3 blocks"),
        ({"recipe": "rigl", "tokens": 1}, "would never move"),
        ({"mix_temperature": 3}, "has no effect with mix='equal'"),
        ({"bf16": "no"}, "bf16='no' is not allowed: give True or False"),
        ({"learning_rate": 0}, "learning_rate=0"),
        ({"sequence_length": 0}, "sequence_length=0"),
        ({"sequence_length": 65}, "exceeds the model's 64 positions"),
        ({"recipe": "lora", "lora_rank": 0}, "lora_rank=0"),
        ({"recipe": "distill", "distillation_weight": 2}, "distillation_weight=2"),
        ({"languages": ["xx"]}, "'xx' was asked for"),
        ({"language_column": None}, "language_column=None"),
        ({"recipe": "distill", "teacher": make_model(), "report": losses(en=2.1, fr=2.2)}, "no evaluation of 'sw'"),
        ({"mix": "need", "report": losses(en=2.1, fr=2.2)}, "There is no weight for 'sw'"),
    ],
)
def test_wrong_settings_are_refused_and_change_nothing(settings: dict[str, Any], message: str) -> None:
    model = prune()
    before = state_of(model)
    with pytest.raises(ValueError, match=message.replace("(", "\\(")):
        recover(model, make_rows(), **{**SMALL, **settings})
    assert_untouched(model, before, training=False)


def test_every_setting_of_one_recipe_is_known_as_such() -> None:
    names = [field.name for field in dataclasses.fields(RecoverySettings)]
    first_words = {"distillation": "distill", "lora": "lora", "rigl": "rigl", "lisa": "lisa"}
    known = {name: recipe for name, recipe in RECIPE_OF.items() if recipe != "gradual"}
    assert {name: first_words[word] for name in names if (word := name.split("_")[0]) in first_words} == known


def test_unknown_setting_is_refused() -> None:
    with pytest.raises(TypeError, match="epochs"):
        recover(prune(), make_rows(), epochs=3)


def test_what_is_no_plain_model_to_train_is_refused_and_not_changed() -> None:
    model = prune()
    before = state_of(model)
    with pytest.raises(TypeError, match="model is a str: give a pruned model"):
        recover("pruned", make_rows(), **SMALL)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="inside a wrapper, OptimizedModule: give the model itself"):
        recover(torch.compile(model), make_rows(), **SMALL)  # type: ignore[arg-type]
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="No parameter of the model can be trained"):
        recover(model, make_rows(), **SMALL)
    assert_untouched(model, before, training=False)


@pytest.mark.parametrize("recipe", ["masks", "lora"])
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft itself
def test_model_with_an_adapter_is_refused(recipe: str) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    adapted = peft.get_peft_model(prune(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"merge it first, with merge_preserving_masks\(peft_model\)"):
        recover(adapted, make_rows(), recipe=recipe, **SMALL)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mix": "need", "report": {"en": 1}}, "report is a dict: give PerplexityComparison"),
        ({"recipe": "distill", "teacher": "dense"}, "teacher is a str: give the dense model"),
    ],
)
def test_what_is_no_report_or_no_teacher_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        recover(prune(), make_rows(), **settings, **SMALL)


def test_dense_model_is_refused_before_its_text_is_read() -> None:
    def rows() -> Any:
        raise AssertionError("read")

    with pytest.raises(ValueError, match="no sparsity record"):
        recover(make_model(), Dataset.from_list(make_rows()).to_iterable_dataset().map(rows), **SMALL)


def test_weights_that_are_not_the_records_are_refused() -> None:
    model = prune()
    torch.nn.init.ones_(model.model.layers[1].mlp.up_proj.weight)
    with pytest.raises(ValueError, match="not those that the sparsity record describes"):
        recover(model, make_rows(), **SMALL)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [(lambda model: model, "load the dense model a second time"), (lambda _: wide_model(), "The teacher knows 97")],
    ids=["itself", "other vocabulary"],
)
def test_teacher_that_cannot_teach_is_refused(
    teacher: Callable[[PreTrainedModel], PreTrainedModel], message: str
) -> None:
    model = prune(torch.bfloat16)
    before = state_of(model)
    with pytest.raises(ValueError, match=message):
        recover(model, make_rows(), recipe="distill", teacher=teacher(model), **SMALL)
    assert_untouched(model, before, training=False)


def wide_model() -> PreTrainedModel:
    model = make_model()
    model.resize_token_embeddings(97)
    return model


def test_dense_model_stays_as_it_is() -> None:
    teacher = make_model()
    before = state_of(teacher)
    recover(prune(), make_rows(), recipe="distill", teacher=teacher, **SMALL)
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_distillation_alone_comes_closer_to_the_dense_model() -> None:
    model, teacher, ids = prune(), make_model(seed=1).eval(), torch.tensor([make_rows()[0]["input_ids"][:16]])
    teacher.lm_head.weight.data *= 20  # a random model has no opinions

    def distance() -> float:
        with torch.no_grad():
            student, dense = (each(ids).logits.log_softmax(-1) for each in (model, teacher))
        return torch.nn.functional.kl_div(student, dense, log_target=True, reduction="batchmean").item()

    before = distance()
    settings = {**SMALL, "tokens": 640, "distillation_weight": 1.0, "learning_rate": 1e-2}
    recover(model, make_rows(), recipe="distill", teacher=teacher, **settings)
    assert distance() < 0.9 * before


@pytest.mark.parametrize("as_stream", [False, True], ids=["table", "stream"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_text_is_taken_as_a_table_or_as_a_stream(recipe: str, as_stream: bool) -> None:
    rows = Dataset.from_list(make_rows())
    text = rows.to_iterable_dataset() if as_stream else rows
    given = words(recipe) | ({"report": losses(en=2.1, fr=2.2, sw=2.4)} if recipe == "distill" else {})
    recovery = recover(prune(), text, languages=["en", "sw"], **given, **SMALL)
    assert recovery.mix.shares == {"en": 0.5, "sw": 0.5}
    assert (recovery.mix.available is None) is as_stream
    assert verify_sparsity(recovery.model).ok


def test_as_many_tokens_are_read_as_asked_for() -> None:
    recovery = recover(prune(), make_rows(), **{**SMALL, "tokens": 160})
    assert recovery.mix.drawn is not None
    assert recovery.steps == 5
    assert sum(recovery.mix.drawn.values()) * 16 == 160


def test_need_follows_the_report() -> None:
    recovery = recover(prune(), make_rows(), mix="need", report=losses(en=2.1, fr=2.2, sw=2.9), **SMALL)
    assert recovery.mix.shares["sw"] > recovery.mix.shares["fr"] > recovery.mix.shares["en"]


def test_distillation_weighs_languages_by_need(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, float] = {}
    compute = DistillationTrainer.compute_loss

    def look(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        seen[str(inputs["input_ids"][0, :3].tolist())] = inputs[LOSS_WEIGHT][0].item()
        return compute(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "compute_loss", look)
    report = losses(en=2.1, fr=2.2, sw=2.9)
    recover(prune(), make_rows(), recipe="distill", teacher=make_model(), report=report, **{**SMALL, "tokens": 256})
    assert len(set(seen.values())) > 1


def test_training_twice_is_written_down_twice_and_gives_the_same_each_time() -> None:
    models = [prune(), prune()]
    for model in models:
        recover(model, make_rows(), **SMALL)
        recover(model, make_rows(), recipe="distill", teacher=make_model(), **SMALL)
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    record = sparsity_record(models[0])
    assert record is not None
    assert [entry.recipe for entry in record.training] == ["masks", "distill"]


def test_nothing_is_printed_without_progress_and_a_bar_with_it(capfd: pytest.CaptureFixture[str]) -> None:
    recover(prune(), make_rows(), **SMALL)
    assert capfd.readouterr() == ("", "")
    recover(prune(), make_rows(), **{**SMALL, "progress": True})
    out, err = capfd.readouterr()
    assert out == ""
    assert "Training: 100%" in err
    assert "train_runtime" not in err


def test_transposed_matrices_are_trained() -> None:
    recovery = recover(prune(family="gpt2"), make_rows(), **SMALL)
    assert verify_sparsity(recovery.model).ok
