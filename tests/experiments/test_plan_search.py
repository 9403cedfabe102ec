"""A plan that is searched for is never worse than the first one, costs no weight more, and leaves the model alone."""

import json
import math
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from optimum_mwanda import MWandaConfig, MWandaPruner, SparsityPlan, search_plan, verify_sparsity
from optimum_mwanda.data.chunks import build_chunks
from optimum_mwanda.evaluation import divergence as divergences
from optimum_mwanda.evaluation.divergence import Divergence
from optimum_mwanda.experiments.dense_state import DenseState
from optimum_mwanda.experiments.plans import fitness
from optimum_mwanda.experiments.plans.candidates import Unit, descend, find_units, mutate, start_of, to_plan
from optimum_mwanda.experiments.plans.evolution_defaults import ProposedBy
from optimum_mwanda.experiments.plans.slopes import Slopes
from optimum_mwanda.modeling.blocks import find_blocks, inference_mode
from optimum_mwanda.modeling.weights import PrunableWeight, find_weights, flat
from optimum_mwanda.pruning.sparsity_plan import BlockPlan
from optimum_mwanda.storage.journal import Journal, OtherRunError
from tests.families.matrix import FAMILIES

from ..conftest import assert_untouched, make_model, make_rows, state_of

Rows = dict[str, list[dict[str, str]]]
TINY = MWandaConfig(sequence_length=16, samples_per_language=4, sparsity=0.6)
QUICK: dict[str, Any] = {"candidates": 12, "progress": False}
PROPOSED_BY: tuple[ProposedBy, ...] = ("slopes", "exchanges")


def unit(rows: int, columns: int = 8) -> Unit:
    return Unit("block", (PrunableWeight(f"block.{rows}", "block", nn.Linear(columns, rows)),))


class TestCandidates:
    @given(st.lists(st.integers(1, 9), min_size=2, max_size=6), st.integers(0, 2**16), st.floats(0.01, 0.3))
    def test_an_exchange_keeps_the_number_of_pruned_weights_and_the_bounds(
        self, sizes: list[int], seed: int, step: float
    ) -> None:
        units = [unit(size) for size in sizes]
        sparsities = tuple(0.5 for _ in units)
        rng = random.Random(seed)
        for _ in range(20):
            sparsities = mutate(sparsities, units, rng, step, (0.2, 0.8))
            assert all(0.2 <= sparsity <= 0.8 for sparsity in sparsities)
            pruned = sum(each.numel * sparsity for each, sparsity in zip(units, sparsities, strict=True))
            assert pruned == pytest.approx(0.5 * sum(each.numel for each in units))

    def test_a_plan_made_of_sparsities_gives_them_back(self) -> None:
        weights = find_weights(find_blocks(make_model()))
        units = find_units(weights)
        sparsities = tuple(round(0.3 + 0.01 * number, 12) for number in range(len(units)))
        plan = to_plan(sparsities, units, weights, {}, 0.5)
        assert start_of(plan, units) == sparsities
        total = sum(weight.numel for weight in flat(weights))
        mean = sum(plan.of(weight) * weight.numel for weight in flat(weights)) / total
        assert plan.planned == pytest.approx(mean)

    @pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
    def test_the_experts_of_a_layer_share_a_sparsity(self, family: str) -> None:
        weights = find_weights(find_blocks(FAMILIES[family].make()))
        units = find_units(weights)
        experts = [each for each in units if each.weights[0].expert_name is not None]
        assert experts
        assert all(len(each.weights) > 1 for each in experts)
        assert sum(len(each.weights) for each in units) == len(flat(weights))

    @given(st.lists(st.integers(1, 9), min_size=2, max_size=6), st.data())
    def test_a_step_down_keeps_the_number_of_pruned_weights_and_spares_what_costs_more(
        self, sizes: list[int], data: st.DataObject
    ) -> None:
        units = [unit(size) for size in sizes]
        slopes = data.draw(st.lists(st.floats(-1, 9), min_size=len(units), max_size=len(units)))
        found = descend(tuple(0.5 for _ in units), units, slopes, 0.05, (0.3, 0.9))
        pruned = sum(each.numel * sparsity for each, sparsity in zip(units, found, strict=True))
        assert pruned == pytest.approx(0.5 * sum(each.numel for each in units))
        assert all(abs(sparsity - 0.5) <= 0.075 + 1e-9 for sparsity in found)
        by_cost = [sparsity for _, sparsity in sorted(zip(slopes, found, strict=True), reverse=True)]
        assert all(one <= other + 1e-9 for one, other in pairwise(by_cost))

    def test_a_step_down_by_hand(self) -> None:
        units = [unit(2), unit(2)]
        # The price at which nothing moves is exp(0.5): one unit costs exp(0.5) times that, and the other as much less.
        found = descend((0.5, 0.5), units, (1.0, math.e), 0.1, (0.0, 1.0))
        assert found == pytest.approx((0.55, 0.45))
        assert descend((0.5, 0.5), units, (1.0, math.e), 0.1, (0.48, 1.0)) == pytest.approx((0.52, 0.48))
        assert descend((0.5, 0.5), units, (-1.0, 0.0), 0.1, (0.0, 1.0)) == (0.5, 0.5)


class TestSlopes:
    @pytest.mark.parametrize("family", ["gpt2", "mixtral", "qwen3_moe", "gemma3_text"])
    def test_are_how_the_divergence_changes_with_the_weights_near_the_cut(self, family: str) -> None:
        model = FAMILIES[family].make().requires_grad_(requires_grad=False)
        statistics = MWandaPruner(TINY, progress=False).calibrate(model, make_rows())
        units = find_units(find_weights(find_blocks(model)))
        plan = tuple(0.5 for _ in units)
        with inference_mode(model), DenseState(model, [weight for unit in units for weight in unit.weights]) as state:
            divergence = Divergence(model, build_chunks(make_rows(), TINY, model), 3, 8, 3)
            masked = fitness.Masked(state, units, statistics, TINY)
            masked.become(plan)
            weights = {"en": 0.25, "fr": 0.5, "sw": 0.25}
            found = Slopes(model, None, divergence, masked, units, None).at(plan, weights)
            assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())

            def with_share(unit: Unit, share: float) -> float:
                """The divergence with something of the weights near the cut added to them."""
                before = [weight.matrix.clone() for weight in unit.weights]
                for weight in unit.weights:
                    places, values = masked.margin(weight, 0.5)
                    flattened = weight.matrix.flatten()
                    flattened[places] += share * values
                    weight.matrix.copy_(flattened.view(weight.shape))
                measured = divergence.measure_all()
                for weight, pruned in zip(unit.weights, before, strict=True):
                    weight.matrix.copy_(pruned)
                return sum(weights[language] * value for language, value in measured.items())

            for number in (0, len(units) // 2, len(units) - 1):
                unit = units[number]
                count = sum(len(masked.margin(weight, 0.5)[0]) for weight in unit.weights)
                change = (with_share(unit, 0.05) - with_share(unit, -0.05)) / 0.1
                assert found[number] * count == pytest.approx(-change, rel=0.01, abs=2e-6)
            state.restore()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_are_found_in_half_precision_too(self, dtype: torch.dtype) -> None:
        def found(model: PreTrainedModel) -> list[float]:
            statistics = MWandaPruner(TINY, progress=False).calibrate(model, make_rows())
            units = find_units(find_weights(find_blocks(model)))
            with inference_mode(model), DenseState(model, [w for unit in units for w in unit.weights]) as state:
                divergence = Divergence(model, build_chunks(make_rows(), TINY, model), 2, 16, 4)
                masked = fitness.Masked(state, units, statistics, TINY)
                return Slopes(model, None, divergence, masked, units, None).at(
                    tuple(0.5 for _ in units), dict.fromkeys(statistics.tokens, 1 / len(statistics.tokens))
                )

        half, full = torch.tensor(found(make_model().to(dtype))), torch.tensor(found(make_model()))
        assert (half - full).norm() < 0.1 * full.norm()

    def test_gradients_that_are_not_finite_are_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = make_model()
        before = state_of(model)
        nothing = torch.full((1, 1), float("nan"))
        monkeypatch.setattr(divergences, "_divergence_gradient", lambda *_: nothing)
        with pytest.raises(
            FloatingPointError, match=r"'model.layers.0.self_attn.q_proj' is not finite: load the model"
        ):
            search_plan(model, make_rows(), None, TINY, **QUICK)
        assert_untouched(model, before)


class TestDivergence:
    def test_is_the_mean_over_the_text_of_what_the_probabilities_give(self) -> None:
        model, other = make_model(), make_model(seed=1)
        chunks = build_chunks(make_rows(), TINY, model)
        with inference_mode(model), inference_mode(other):
            measured = Divergence(model, chunks, 2, 8, 3)
            state = state_of(model)
            for part in range(2):
                assert all(value == pytest.approx(0, abs=1e-6) for value in measured.measure(part).values())
            model.load_state_dict(other.state_dict())
            found = measured.measure(0)
            model.load_state_dict(state)
            for language, (part, *_) in chunks.chunks.items():
                ids = part["input_ids"][:1, :8]
                p, q = model(input_ids=ids).logits.log_softmax(-1), other(input_ids=ids).logits.log_softmax(-1)
                assert found[language] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)

    def test_all_unlikely_tokens_count_as_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("optimum_mwanda.evaluation.divergence._LIKELY", 2)
        model, other = make_model(), make_model(seed=1)
        chunks = build_chunks(make_rows(), TINY, model)
        with inference_mode(model):
            measured = Divergence(model, chunks, 1, 8, 1)
            p = [model(input_ids=part["input_ids"][:1, :8]).logits.softmax(-1) for part, *_ in chunks.chunks.values()]
            model.load_state_dict(other.state_dict())
            found = measured.measure(0)
            for (language, (part, *_)), dense in zip(chunks.chunks.items(), p, strict=True):
                values, tokens = dense.topk(2, dim=-1)
                q = model(input_ids=part["input_ids"][:1, :8]).logits.softmax(-1).gather(-1, tokens)
                left, left_now = 1 - values.sum(-1), 1 - q.sum(-1)
                expected = (values * (values / q).log()).sum(-1) + left * (left / left_now).log()
                assert found[language] == pytest.approx(float(expected.mean()), rel=1e-3)


class TestSearch:
    @pytest.mark.parametrize(("proposed_by", "candidates"), [("slopes", 6), ("exchanges", 30)])
    def test_finds_a_plan_that_is_closer_to_the_dense_model_and_prunes_as_much(
        self,
        sample_model: PreTrainedModel,
        sample_tokenizer: PreTrainedTokenizerBase,
        sample_rows: Rows,
        proposed_by: ProposedBy,
        candidates: int,
    ) -> None:
        config = MWandaConfig(languages=("de", "en"), sequence_length=64, samples_per_language=4, sparsity=0.6)
        before = state_of(sample_model)
        words: dict[str, Any] = {"proposed_by": proposed_by, "candidates": candidates}
        found = search_plan(sample_model, sample_rows["calibration"], sample_tokenizer, config, **words)
        assert_untouched(sample_model, before, training=False)
        assert sum(found.after.values()) < sum(found.before.values())
        assert found.accepted > 0
        assert found.plan.planned == pytest.approx(0.6)
        assert found.plan.allocation == "search"
        MWandaPruner(config, progress=False).prune(
            sample_model, sample_rows["calibration"], sample_tokenizer, plan=found.plan
        )
        record = sample_model.config.mwanda_config
        assert record["plan"] == "search"
        assert record["achieved_sparsity"] == pytest.approx(0.6, abs=0.005)
        assert verify_sparsity(sample_model).ok

    @pytest.mark.parametrize("proposed_by", PROPOSED_BY)
    def test_begins_with_a_plan_that_is_given(self, proposed_by: ProposedBy) -> None:
        words = {**QUICK, "proposed_by": proposed_by}
        first = search_plan(make_model(), make_rows(), None, TINY, **words)
        assert first.accepted  # so that what it found is another plan than that of the allocation
        second = search_plan(make_model(), make_rows(), None, TINY, **words, plan=first.plan)
        assert second.before == pytest.approx(first.after)
        assert second.plan.planned == pytest.approx(first.plan.planned)
        assert [block.importance for block in second.plan.blocks] == [block.importance for block in first.plan.blocks]

    def test_a_plan_to_begin_with_must_fit(self) -> None:
        model = make_model()
        plan = search_plan(model, make_rows(), None, TINY, **QUICK).plan
        before = state_of(model)
        for config, reason in (
            (TINY.replace(sparsity=0.5), "made for a sparsity of 0.6, which a search keeps, and not for sparsity=0.5"),
            (TINY.replace(exclude=("*.q_proj",)), "which is not pruned"),
        ):
            with pytest.raises(ValueError, match=reason):
                search_plan(model, make_rows(), None, config, **QUICK, plan=plan)
        edited = plan.replace({plan.blocks[0].name: 0.9})  # made for 0.6, but no longer of that
        with pytest.raises(ValueError, match=r"prunes 0\.6\d+ of the weights, which a search keeps"):
            search_plan(model, make_rows(), None, TINY, **QUICK, plan=edited)
        assert_untouched(model, before)

    def test_a_plan_to_begin_with_gives_the_experts_of_a_layer_one_sparsity(self) -> None:
        model = FAMILIES["mixtral"].make()
        weights = find_weights(find_blocks(model))
        own = {weight.name: 0.6 for weight in flat(weights)}
        experts = [name for name in own if name.startswith("model.layers.0.") and name.endswith("gate_up_proj")]
        own |= {experts[0]: 0.5, experts[1]: 0.7}
        blocks = [
            BlockPlan(name, sum(w.numel for w in each), None, 0.6, {w.name: own[w.name] for w in each})
            for name, each in weights.items()
        ]
        with pytest.raises(ValueError, match="of other experts different sparsities"):
            search_plan(model, make_rows(), None, TINY, **QUICK, plan=SparsityPlan(0.6, "edited", tuple(blocks)))

    def test_what_is_no_model_is_refused(self) -> None:
        with pytest.raises(TypeError, match="pass a loaded transformers model"):
            search_plan("model", make_rows(), None, TINY, **QUICK)  # type: ignore[arg-type]

    @pytest.mark.parametrize("proposed_by", PROPOSED_BY)
    def test_the_same_search_finds_the_same_plan(self, proposed_by: ProposedBy) -> None:
        words = {**QUICK, "proposed_by": proposed_by}
        plans = [search_plan(make_model(), make_rows(), None, TINY, **words).plan for _ in range(2)]
        assert plans[0] == plans[1]

    @pytest.mark.parametrize("proposed_by", PROPOSED_BY)
    def test_a_search_that_was_stopped_goes_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proposed_by: ProposedBy
    ) -> None:
        words = {**QUICK, "proposed_by": proposed_by}
        whole = search_plan(make_model(), make_rows(), None, TINY, **words)
        model, measured = make_model(), []
        before = state_of(model)
        measure = Divergence.measure

        def stop(self: Divergence, part: int) -> dict[str, float]:
            measured.append(part)
            if len(measured) == 9:
                raise KeyboardInterrupt
            return measure(self, part)

        monkeypatch.setattr(Divergence, "measure", stop)
        with pytest.raises(KeyboardInterrupt):
            search_plan(model, make_rows(), None, TINY, **words, journal=Journal(tmp_path / "progress"))
        assert_untouched(model, before)
        rest = search_plan(model, make_rows(), None, TINY, **words, journal=Journal(tmp_path / "progress"))
        assert rest == whole
        with pytest.raises(OtherRunError, match="tokens"):
            search_plan(model, make_rows(), None, TINY, **words, tokens=9, journal=Journal(tmp_path / "progress"))

    def test_the_worst_language_can_be_all_that_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made: list[Any] = []

        def only_worst(self: fitness.Fitness, languages: dict[str, float]) -> dict[str, float]:
            made.append(self)
            return {name: float(value == max(languages.values())) for name, value in languages.items()}

        monkeypatch.setattr(fitness.Fitness, "weights", only_worst)
        by_worst = search_plan(make_model(), make_rows(), None, TINY, **QUICK)
        monkeypatch.undo()
        assert search_plan(make_model(), make_rows(), None, TINY, **QUICK, worst=1.0).plan == by_worst.plan
        assert made

    def test_languages_count_by_their_weight_however_many_chunks_they_have(self) -> None:
        parts = ({"en": 1.0, "sw": 9.0}, {"en": 1.0})
        rows = [row for row in make_rows("en sw") if row["language"] == "en" or row == make_rows("en sw")[4]]
        model = make_model()
        measured = fitness.Measured(parts)
        assert measured.languages == {"en": 1.0, "sw": 9.0}
        value = fitness.Fitness(None, None, {"en": 0.5, "sw": 0.5}, 0.0, None).value  # type: ignore[arg-type]
        assert value(measured.languages) == 5.0
        partly = fitness.Fitness(None, None, {"en": 0.5, "sw": 0.5}, 0.25, None)  # type: ignore[arg-type]
        assert partly.value(measured.languages) == 0.75 * 5 + 0.25 * 9
        assert search_plan(model, rows, None, TINY, **QUICK).before.keys() == {"en", "sw"}

    def test_a_language_may_weigh_nothing(self) -> None:
        rows = [*make_rows("en"), make_rows("sw", seed=1)[0]]
        config = TINY.replace(language_weights={"en": 0.0, "sw": 1.0})
        assert search_plan(make_model(), rows, None, config, **QUICK).plan.planned == pytest.approx(0.6)

    def test_masks_are_those_of_the_pruner_with_sensitivities_too(self) -> None:
        rows, model = make_rows(length=16), make_model()
        config = TINY.replace(sensitivity="fisher", group="matrix")
        pruner = MWandaPruner(config, progress=False)
        statistics = pruner.calibrate(model, rows)
        weights = find_weights(find_blocks(model))
        units = find_units(weights)
        plan = pruner.allocate(model, statistics)
        pruned = pruner.apply(make_model(), statistics, plan).state_dict()
        with inference_mode(model), DenseState(model, flat(weights)) as state:
            fitness.Masked(state, units, statistics, config).become(start_of(plan, units))
            assert all(torch.equal(tensor, pruned[name]) for name, tensor in model.state_dict().items())
            state.restore()

    @pytest.mark.parametrize("group", ["row", "matrix"])
    def test_swaps_with_sensitivities_get_a_plan(self, group: str) -> None:
        config = TINY.replace(sensitivity="fisher", group=group, refinement="swap")
        found = search_plan(make_model(), make_rows(length=16), None, config, **QUICK)
        assert found.plan.planned == pytest.approx(0.6)

    def test_solvers_get_a_plan_too(self) -> None:
        config = TINY.replace(criterion="alps", group="matrix", reconstruction=None, calibration=None, damping=None)
        model = make_model()
        found = search_plan(model, make_rows(), None, config, **QUICK)
        MWandaPruner(config, progress=False).prune(model, make_rows(), plan=found.plan)
        for weight in flat(find_weights(find_blocks(model))):
            zeros = int((weight.matrix == 0).sum()) / weight.numel
            assert zeros == pytest.approx(found.plan.of(weight), abs=1 / weight.numel)

    @pytest.mark.parametrize(
        ("make", "config", "options", "reason"),
        [
            (make_model, TINY.replace(sparsity=None, pattern="2:4", allocation="uniform"), {}, "nothing to search for"),
            (lambda: FAMILIES["mbart"].make(), TINY, {}, "encoder-decoder"),
            (make_model, TINY.replace(language_weights="minimax"), {}, "find_language_weights first"),
            (make_model, TINY, {"candidates": 0}, "candidates=0 is not allowed"),
            (make_model, TINY, {"worst": 2.0}, "worst=2.0 is not allowed"),
            (make_model, TINY, {"step": 1.0}, "step=1.0 is not allowed"),
            (make_model, TINY, {"proposed_by": "chance"}, "Choose one of: 'slopes', 'exchanges'"),
            (make_model, TINY, {"tokens": 1}, "tokens=1 is not allowed"),
            (make_model, TINY.replace(include=("*.0.mlp.up_proj",)), {}, "Only one matrix is pruned"),
        ],
    )
    def test_what_cannot_be_searched_is_refused(
        self, make: Callable[[], PreTrainedModel], config: MWandaConfig, options: dict[str, Any], reason: str
    ) -> None:
        model = make()
        before, training = state_of(model), model.training
        with pytest.raises(ValueError, match=reason):
            search_plan(model, make_rows(), None, config, progress=False, **options)
        assert_untouched(model, before, training)


class TestPlanInPruner:
    def test_every_matrix_gets_the_sparsity_of_the_plan(self) -> None:
        model = make_model()
        weights = find_weights(find_blocks(model))
        units = find_units(weights)
        plan = to_plan(tuple(0.25 + 0.5 * (n % 2) for n in range(len(units))), units, weights, {}, 0.5)
        MWandaPruner(TINY, progress=False).prune(model, make_rows(), plan=plan)
        for weight in flat(weights):
            zeros = int((weight.matrix == 0).sum()) / weight.numel
            assert zeros == pytest.approx(plan.of(weight), abs=0.5 / weight.in_features)

    def test_a_plan_of_matrices_that_are_not_pruned_is_refused_before_the_work(self) -> None:
        model = make_model()
        plan = search_plan(model, make_rows(), None, TINY, **QUICK).plan
        before = state_of(model)
        with pytest.raises(ValueError, match=r"which is not pruned: it was made for another model"):
            MWandaPruner(TINY.replace(exclude=("*.q_proj",)), progress=False).prune(model, make_rows(), plan=plan)
        assert_untouched(model, before)

    def test_a_plan_for_another_sparsity_counts_but_not_in_silence(self, caplog: pytest.LogCaptureFixture) -> None:
        model = make_model()
        plan = search_plan(model, make_rows(), None, TINY, **QUICK).plan
        MWandaPruner(TINY.replace(sparsity=0.5), progress=False).prune(model, make_rows(), plan=plan)
        assert "made for a sparsity of 0.6, and not for sparsity=0.5" in caplog.text
        assert model.config.mwanda_config["target_sparsity"] == pytest.approx(0.6)

    def test_allocations_that_compare_languages_are_not_asked_where_a_plan_is_given(self) -> None:
        config = TINY.replace(allocation="cwl", languages=("en",))
        model = make_model()
        plan = MWandaPruner(TINY.replace(allocation="uniform"), progress=False).allocate(
            model, MWandaPruner(TINY, progress=False).calibrate(model, make_rows())
        )
        MWandaPruner(config, progress=False).prune(model, make_rows(), plan=plan.replace({plan.blocks[0].name: 0.5}))
        assert model.config.mwanda_config["plan"] == "edited"

    def test_a_plan_saved_and_loaded_prunes_alike(self, tmp_path: Path) -> None:
        plan = search_plan(make_model(), make_rows(), None, TINY, **QUICK).plan
        plan.save(tmp_path / "plan.json")
        assert json.loads((tmp_path / "plan.json").read_text())["allocation"] == "search"
        models = [make_model(), make_model()]
        for model, read in zip(models, (plan, SparsityPlan.load(tmp_path / "plan.json")), strict=True):
            MWandaPruner(TINY, progress=False).prune(model, make_rows(), plan=read)
        one, other = (model.state_dict() for model in models)
        assert all(torch.equal(one[name], other[name]) for name in one)
