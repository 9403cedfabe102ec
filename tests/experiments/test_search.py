"""The sparsity that is found is within the limit, the next one is not, and whatever happens the model is in order."""

import itertools
import json
import logging
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import optimum_mwanda.experiments.search.bisection
from optimum_mwanda import MWandaConfig, MWandaPruner, PerplexityComparison, PerplexityReport, evaluate_languages
from optimum_mwanda.evaluation.perplexity import measure_languages
from optimum_mwanda.evaluation.scores import LanguageScore
from optimum_mwanda.experiments.search.bisection import find_sparsity
from optimum_mwanda.experiments.search.outcome import SparsitySearch, SparsityTrial
from optimum_mwanda.experiments.search.space import SearchSpace, protect_languages
from optimum_mwanda.walking.editor import WeightEditor

from ..conftest import assert_untouched, make_model, make_rows, state_of

Rows = dict[str, list[dict[str, str]]]
CONFIG = MWandaConfig(languages=("de", "en", "ta"), sequence_length=64, samples_per_language=4, sparsity=0.2)
EVALUATION: dict[str, Any] = {"languages": ("de", "ta", "uk"), "tokens_per_language": 256}
LIMITS: dict[str, Any] = {"bounds": (0.3, 0.8), "resolution": 0.1, "progress": False}
TINY = {"sequence_length": 16, "samples_per_language": 2}


def search_sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, config: MWandaConfig = CONFIG, **limits: Any
) -> SparsitySearch:
    options = {**LIMITS, **EVALUATION, **limits}
    return find_sparsity(model, rows["calibration"], rows["evaluation"], tokenizer, config, **options)


def search_tiny(model: PreTrainedModel, config: MWandaConfig | None = None, **limits: Any) -> SparsitySearch:
    return find_sparsity(
        model, make_rows(), make_rows(seed=1), None, config or MWandaConfig(**TINY), **{**LIMITS, **limits}
    )


def measure_at(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, config: MWandaConfig
) -> dict[str, float]:
    """Degradation per language by pruning a dense model with the library's other functions."""

    def evaluate() -> PerplexityReport:
        return evaluate_languages(
            model, tokenizer, rows["evaluation"], sequence_length=64, progress=False, **EVALUATION
        )

    dense = evaluate()
    MWandaPruner(config, progress=False).prune(model, rows["calibration"], tokenizer)
    pruned = evaluate()
    return {name: pruned.scores[name].nll / dense.scores[name].nll - 1 for name in dense.scores}


def assert_same_model(one: PreTrainedModel, other: PreTrainedModel) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert one.config.mwanda_config == other.config.mwanda_config


class TestFound:
    def test_is_what_trying_every_sparsity_finds(
        self, sample_model: PreTrainedModel, sample_tokenizer: PreTrainedTokenizerBase, sample_rows: Rows
    ) -> None:
        dense = state_of(sample_model)
        search = search_sample(sample_model, sample_tokenizer, sample_rows)
        pruned = state_of(sample_model)
        record = sample_model.config.mwanda_config
        within = []
        for sparsity in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
            sample_model.load_state_dict(dense)
            del sample_model.config.mwanda_config
            config = CONFIG.replace(sparsity=sparsity)
            found = measure_at(sample_model, sample_tokenizer, sample_rows, config)
            if max(found.values()) <= 0.05:
                within.append(sparsity)
            for trial in search.trials:
                if trial.sparsity == sparsity:
                    assert trial.degradations == found
                    assert trial.worst == max(found.values())
                    assert trial.feasible is (sparsity in within)
            if search.chosen is not None and search.chosen.sparsity == sparsity:
                # The model is left as pruning at that sparsity leaves it.
                assert all(torch.equal(pruned[name], tensor) for name, tensor in sample_model.state_dict().items())
                assert record == sample_model.config.mwanda_config
        assert within
        assert within != [0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
        assert search.chosen is not None
        assert search.chosen.sparsity == within[-1]
        assert search.chosen.feasible
        above = [trial for trial in search.trials if trial.sparsity == round(within[-1] + 0.1, 9)]
        assert [trial.feasible for trial in above] == [False]
        assert search.comparison.seen == ["de", "en", "ta"]
        assert search.comparison.unseen == ("uk",)

    def test_every_trial_is_in_the_report_after_one_calibration_and_one_dense_evaluation(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        counts = {"evaluated": 0, "calibrated": 0, "applied": 0}

        def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                counts[name] += 1
                return function(*args, **kwargs)

            return call

        monkeypatch.setattr(
            optimum_mwanda.experiments.search.bisection, "measure_languages", counting("evaluated", measure_languages)
        )
        monkeypatch.setattr(MWandaPruner, "calibrate", counting("calibrated", MWandaPruner.calibrate))
        monkeypatch.setattr(MWandaPruner, "apply", counting("applied", MWandaPruner.apply))
        search = search_tiny(make_model(), resolution=0.01, strengths=(0.0, 0.04), apply=False)
        trials = len(search.trials)
        assert counts == {"evaluated": 1 + trials, "calibrated": 1, "applied": trials}
        assert 2 <= trials <= 2 * 6  # 51 sparsities, two bisections
        rows = [
            line
            for line in search.to_markdown().splitlines()
            if line.startswith(tuple("|" + f" {n} " for n in range(1, 99)))
        ]
        assert len(rows) == trials
        assert len(search.to_dict()["trials"]) == trials

    def test_is_read_back_from_json(self) -> None:
        search = search_tiny(make_model(), strengths=[0.0, 0.04], protect={"sw": 2.0})
        assert SparsitySearch.from_dict(json.loads(search.to_json())) == search

    def test_is_the_same_again(self) -> None:
        first, second = make_model(), make_model()
        assert search_tiny(first, protect={"sw": 3.0}) == search_tiny(second, protect={"sw": 3.0})
        assert_same_model(first, second)

    def test_rows_of_ids_are_judged_by_the_loss_per_token(self) -> None:
        model = make_model()
        search = search_tiny(model, max_degradation=1.0)
        assert search.comparison.dense.scores["sw"].bits_per_byte is None
        after = evaluate_languages(model, None, make_rows(seed=1), sequence_length=16, progress=False)
        assert search.chosen is not None
        for language, score in search.comparison.dense.scores.items():
            increase = after.scores[language].nll / score.nll - 1
            assert search.chosen.degradations[language] == pytest.approx(increase, abs=1e-12)

    @pytest.mark.parametrize(
        "settings",
        [
            {"criterion": "sparsegpt"},
            {"criterion": "wanda", "refinement": "swap", "reconstruction": "obs"},
            {"calibration": "sequential"},
            {"criterion": "magnitude", "allocation": "uniform"},
            {"language_weights": "minimax", "minimax_rounds": 1},
        ],
    )
    def test_model_is_as_the_pruner_leaves_it_with_any_way_of_calibrating(self, settings: dict[str, Any]) -> None:
        model, other, config = make_model(), make_model(), MWandaConfig(**TINY, **settings)
        search = search_tiny(model, config, max_degradation=1.0, bounds=(0.3, 0.5))
        assert search.chosen is not None
        assert search.chosen.sparsity == 0.5
        assert search.chosen.strength == (None if config.allocation == "uniform" else 0.04)
        assert search.chosen.achieved_sparsity == pytest.approx(0.5, abs=0.01)
        MWandaPruner(config.replace(sparsity=0.5), progress=False).prune(other, make_rows())
        assert_same_model(model, other)
        assert model.config.mwanda_config["history"] == []


class TestModel:
    def test_is_as_it_was_if_it_is_not_to_be_pruned(self) -> None:
        model = make_model()
        before = state_of(model)
        assert search_tiny(model, max_degradation=1.0, apply=False).chosen is not None
        assert_untouched(model, before)
        assert not hasattr(model.config, "mwanda_config")

    def test_is_as_it_was_if_even_the_lowest_sparsity_is_too_much(
        self, sample_model: PreTrainedModel, sample_tokenizer: PreTrainedTokenizerBase, sample_rows: Rows
    ) -> None:
        before = state_of(sample_model)
        search = search_sample(sample_model, sample_tokenizer, sample_rows, max_degradation=0.001, bounds=(0.6, 0.8))
        assert_untouched(sample_model, before, training=False)
        assert (search.chosen, search.outcome, dict(search.comparison.pruned)) == (None, None, {})
        assert min(trial.sparsity for trial in search.trials) == 0.6
        assert search.verdict.startswith("No sparsity was found, not even the lowest: sparsity 0.6")
        assert search.verdict in search.to_markdown()

    def test_pruned_before_keeps_its_record_and_gains_one_entry_of_history(self) -> None:
        model = make_model()
        MWandaPruner(MWandaConfig(**TINY, sparsity=0.2), progress=False).prune(model, make_rows())
        before, record = state_of(model), model.config.mwanda_config
        search_tiny(model, max_degradation=1.0, apply=False)
        assert_untouched(model, before)
        assert model.config.mwanda_config is record
        search_tiny(model, max_degradation=1.0)
        (earlier,) = model.config.mwanda_config["history"]
        assert earlier["target_sparsity"] == 0.2

    @pytest.mark.parametrize("criterion", ["mwanda", "sparsegpt"])
    @pytest.mark.parametrize("error", [RuntimeError("out of order"), KeyboardInterrupt()])
    @pytest.mark.parametrize("call", [0, 1, 25, 60])
    def test_is_as_it_was_after_an_error_while_weights_change(
        self, monkeypatch: pytest.MonkeyPatch, criterion: str, error: BaseException, call: int
    ) -> None:
        method = "replace" if criterion == "sparsegpt" else "zero"
        original, calls = getattr(WeightEditor, method), []

        def fail(self: WeightEditor, *args: Any) -> None:
            original(self, *args)
            calls.append(args)
            if len(calls) > call:
                raise error

        monkeypatch.setattr(WeightEditor, method, fail)
        model = make_model()
        before = state_of(model)
        with pytest.raises(type(error)):
            search_tiny(model, MWandaConfig(**TINY, criterion=criterion), max_degradation=1.0)
        assert_untouched(model, before)
        assert not hasattr(model.config, "mwanda_config")

    @pytest.mark.parametrize("at", [0, 1, 2, 3])
    def test_is_as_it_was_after_an_interrupt_in_any_evaluation(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        measured = []

        def evaluate(model: PreTrainedModel, *args: Any, **options: Any) -> PerplexityReport:
            measured.append(model)
            if len(measured) > at:
                signal.raise_signal(signal.SIGINT)  # arrives in the next forward pass
            return measure_languages(model, *args, **options)

        monkeypatch.setattr(optimum_mwanda.experiments.search.bisection, "measure_languages", evaluate)
        model = make_model()
        before = state_of(model)
        with pytest.raises(KeyboardInterrupt):
            search_tiny(model, protect={"sw": 2.0}, max_degradation=1.0)
        assert len(measured) == at + 1
        assert_untouched(model, before)
        assert not hasattr(model.config, "mwanda_config")

    def test_is_restored_in_silence(self, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
        with caplog.at_level(logging.WARNING):
            search_tiny(make_model())
        assert not caplog.records
        assert capfd.readouterr() == ("", "")


class TestProtect:
    def test_multiplies_the_weight_and_shows_what_that_changes(
        self, sample_model: PreTrainedModel, sample_tokenizer: PreTrainedTokenizerBase, sample_rows: Rows
    ) -> None:
        dense = state_of(sample_model)
        limits = {"bounds": (0.5, 0.6), "max_degradation": 1.0, "protect": {"de": 20.0}}
        search = search_sample(sample_model, sample_tokenizer, sample_rows, **limits)
        weights = {name: each["weight"] for name, each in sample_model.config.mwanda_config["languages"].items()}
        assert weights == pytest.approx({"de": 20 / 22, "en": 1 / 22, "ta": 1 / 22})
        sample_model.load_state_dict(dense)
        alone = measure_at(sample_model, sample_tokenizer, sample_rows, CONFIG.replace(sparsity=0.6))
        found = search.comparison
        assert list(found.pruned) == ["protected", "unprotected"]
        assert search.chosen is not None
        for language in ("de", "ta", "uk"):
            assert found.bits_per_byte_increase("unprotected", language) == alone[language]
            assert found.bits_per_byte_increase("protected", language) == search.chosen.degradations[language]
        assert search.chosen.degradations["de"] < alone["de"]
        (row,) = [line for line in search.to_markdown().splitlines() if line.startswith("| de ")]
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        change = search.chosen.degradations["de"] - alone["de"]
        assert cells[:2] == ["de", "20"]
        assert cells[2] == f"{100 * alone['de']:+.2f} %"
        assert cells[3] == f"{100 * search.chosen.degradations['de']:+.2f} %"
        assert cells[4].startswith(f"{100 * change:+.2f}")
        assert search.outcome is not None
        assert search.outcome.pruned == {"pruned": found.pruned["protected"]}

    @pytest.mark.parametrize(
        ("rule", "expected"),
        [
            ("equal", {"en": 1.0, "sw": 2.0}),
            ("proportional", {"en": 1.5, "sw": 1.0}),  # shares 3/4 and 1/4, mean 1: 1.5 and 0.5
            ({"en": 3.0}, {"en": 1.5, "sw": 1.0}),
            ({"en": 0.0}, {"en": 0.0, "sw": 4.0}),
        ],
    )
    def test_factors_go_on_top_of_any_rule(self, rule: Any, expected: dict[str, float]) -> None:
        config = protect_languages(MWandaConfig(language_weights=rule), {"sw": 2.0}, {"en": 300, "sw": 100})
        assert config.language_weights == expected

    def test_language_that_was_not_calibrated_on_cannot_be_protected(self) -> None:
        model = make_model()
        before = state_of(model)
        for settings in ({}, {"criterion": "sparsegpt"}):
            with pytest.raises(ValueError, match="protect names 'yo', but calibration has: en, fr, sw"):
                search_tiny(model, MWandaConfig(**TINY, **settings), protect={"yo": 2.0})
        assert_untouched(model, before)


def make_search(*trials: tuple[float, float | None, float], **limits: Any) -> SparsitySearch:
    """A search from sparsity, strength and degradation of two languages, the second of which loses nothing."""
    values = {"max_degradation": 0.05, "bounds": (0.1, 0.9), "resolution": 0.1, "strengths": None, "protect": {}}
    dense = PerplexityReport({"en": LanguageScore("en", 10, 2.0)}, "tiny", 16)
    tried = [SparsityTrial(s, strength, s, {"en": 0.0, "sw": worst}, worst <= 0.05) for s, strength, worst in trials]
    return SparsitySearch(
        SearchSpace(MWandaConfig(), **{**values, **limits}), tuple(tried), PerplexityComparison(dense, {})
    )


class TestChoice:
    def test_is_the_highest_sparsity_and_then_the_least_harm(self) -> None:
        search = make_search((0.5, 0.0, 0.04), (0.6, 0.0, 0.06), (0.5, 0.1, 0.03), (0.6, 0.1, 0.07), (0.4, 0.2, 0.01))
        assert search.chosen is search.trials[2]
        assert search.chosen.mean == 0.015
        assert search.chosen.worst_language == "sw"
        assert search.verdict == (
            "Found sparsity 0.5 with strength 0.1: 'sw' +3.00 %, within the 5 % allowed. The next one is too much: "
            "sparsity 0.6 with strength 0.1: 'sw' +7.00 %."
        )

    def test_says_so_if_the_highest_bound_is_within_the_limit(self) -> None:
        search = make_search((0.5, None, 0.01), (0.9, None, 0.05))
        assert search.chosen is search.trials[1]
        assert search.verdict.endswith("the highest sparsity of the bounds: a higher one may also be feasible.")

    def test_says_so_if_nothing_is_within_the_limit(self) -> None:
        search = make_search((0.5, None, 0.3), (0.1, None, 0.2))
        assert search.chosen is None
        assert "not even the lowest: sparsity 0.1: 'sw' +20.00 %, more than the 5 % allowed" in search.verdict


class TestSpace:
    @given(
        low=st.integers(0, 50), span=st.integers(1, 49), resolution=st.sampled_from([0.001, 0.01, 0.03, 0.1, 0.37, 0.9])
    )
    def test_sparsities_run_evenly_from_bound_to_bound(self, low: int, span: int, resolution: float) -> None:
        bounds = (low / 100, (low + span) / 100)
        space = SearchSpace(MWandaConfig(allocation="uniform"), 0.05, bounds, resolution, None, {})
        found = space.sparsities
        steps = [after - before for before, after in itertools.pairwise(found)]
        assert (found[0], found[-1]) == bounds
        assert all(step == pytest.approx(resolution) for step in steps[:-1])
        assert 0 < steps[-1] <= resolution + 1e-9

    def test_sparsities_are_round(self) -> None:
        space = SearchSpace(MWandaConfig(), 0.05, (0.1, 0.35), 0.1, None, {})
        assert space.sparsities == [0.1, 0.2, 0.3, 0.35]

    @pytest.mark.parametrize(
        ("settings", "limits", "message"),
        [
            ({"pattern": "2:4"}, {}, "nothing to search"),
            ({}, {"max_degradation": -0.1}, "max_degradation=-0.1"),
            ({}, {"max_degradation": float("nan")}, "max_degradation=nan"),
            ({}, {"max_degradation": 5}, "max_degradation=5 .*0.05 allows 5 %"),
            ({}, {"bounds": (0.1, 0.2, 0.3)}, "the lowest and the highest"),
            ({}, {"resolution": 0}, "resolution=0"),
            ({}, {"bounds": (0.5, 0.5)}, "the lower sparsity first"),
            ({}, {"bounds": (0.5, 1.0)}, "bounds=1.0"),
            ({"max_block_sparsity": 0.8}, {}, "cannot be reached"),
            ({}, {"strengths": ()}, "one or more different"),
            ({}, {"strengths": (0.1, 0.1)}, "one or more different"),
            ({}, {"strengths": (-0.1,)}, "allocation_strength=-0.1"),
            ({"allocation": "uniform"}, {"strengths": (0.1,)}, "no effect with allocation='uniform'"),
            ({}, {"protect": {"sw": 0}}, r"protect\['sw'\]=0"),
            ({"criterion": "magnitude", "allocation": "uniform"}, {"protect": {"sw": 2}}, "do not use languages"),
        ],
    )
    def test_what_cannot_be_searched_is_refused(
        self, settings: dict[str, Any], limits: dict[str, Any], message: str
    ) -> None:
        model = make_model()
        before = state_of(model)
        with pytest.raises(ValueError, match=message):
            search_tiny(model, MWandaConfig(**settings), **{"bounds": (0.1, 0.9), **limits})
        assert_untouched(model, before)

    def test_settings_of_another_type_are_refused(self) -> None:
        with pytest.raises(TypeError, match="MWandaConfig"):
            search_tiny(make_model(), {"sparsity": 0.5})  # type: ignore[arg-type]
