"""Running a comparison on a tiny model."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.normalizers import Lowercase
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from optimum_mwanda import MWandaConfig, MWandaPruner, evaluate_languages, search_plan
from optimum_mwanda.experiments.grid.plan import ComparisonPlan
from optimum_mwanda.experiments.grid.runner import run_comparison
from optimum_mwanda.experiments.grid.runs import Results, RunResult, append, read_results
from optimum_mwanda.experiments.grid.summary import make_sections
from tests.conftest import make_model, make_rows, state_of

ROWS = make_rows(rows=6, length=40)
HELD_OUT = make_rows(rows=3, length=40, seed=9)
SMALL: dict[str, Any] = {
    "samples_per_language": 2,
    "sequence_length": 16,
    "tokens_per_language": 64,
    "sparsities": [0.6],
}
METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"criterion": "magnitude", "allocation": "uniform"},
    "active": {"activation": "positive", "allocation": "cwl"},
    "updated": {"criterion": "wanda", "reconstruction": "obs"},
}


def run(path: Path, model: PreTrainedModel | None = None, held_out: Any = HELD_OUT, **changes: Any) -> Results:
    plan = ComparisonPlan(**{"methods": METHODS, **SMALL, **changes})
    return run_comparison(make_model() if model is None else model, ROWS, held_out, path, plan, progress=False)


def measure(model: PreTrainedModel) -> Any:
    return evaluate_languages(model, None, HELD_OUT, sequence_length=16, tokens_per_language=64, progress=False)


def by_hand(found: RunResult) -> Any:
    """The same pruning of a fresh model, which calibrates on the languages of the run and no others."""
    model = make_model()
    MWandaPruner(MWandaConfig.from_dict(found.config), progress=False).prune(model, ROWS)
    return measure(model)


@pytest.fixture
def calibrations(monkeypatch: pytest.MonkeyPatch) -> list[MWandaConfig]:
    """The settings of every calibration that is made."""
    made: list[MWandaConfig] = []
    calibrate = MWandaPruner.calibrate

    def count(self: MWandaPruner, *args: Any, **options: Any) -> Any:
        made.append(self.config)
        return calibrate(self, *args, **options)

    monkeypatch.setattr(MWandaPruner, "calibrate", count)
    return made


def test_every_method_is_what_it_would_be_by_itself(tmp_path: Path, calibrations: list[MWandaConfig]) -> None:
    model = make_model()
    before, config = state_of(model), model.config.to_dict()
    results = run(tmp_path / "r.jsonl", model, seeds=[0, 1], patterns=["2:4"])
    assert len(calibrations) == 2  # one per seed
    assert results.dense.report == measure(make_model())
    assert [(each.name, each.point, each.seed) for each in results.runs.values()] == [
        (name, point, seed) for seed in (0, 1) for point in ("60 %", "2:4") for name in METHODS
    ]
    for found in results.runs.values():
        assert found.report == by_hand(found), found.name
        assert found.about["achieved_sparsity"] == pytest.approx(0.5 if found.point == "2:4" else 0.6, abs=0.01)
    assert all(torch.equal(before[name], values) for name, values in state_of(model).items())
    assert model.config.to_dict() == config
    assert read_results(tmp_path / "r.jsonl") == results


def test_rotation_and_single_languages_are_calibrated_on_as_if_there_were_no_others(
    tmp_path: Path, calibrations: list[MWandaConfig]
) -> None:
    methods = {name: METHODS[name] for name in ("magnitude", "active")}
    results = run(tmp_path / "r.jsonl", methods=methods, rotate=3, only=["en"])
    assert len(calibrations) == 2  # one serves all folds, one has more text of a single language
    runs = list(results.runs.values())
    folds = [("rotation of 3", seen, name) for seen in (("fr", "sw"), ("en", "sw"), ("en", "fr")) for name in methods]
    # CWL compares languages, so there is none for a single one.
    assert [(each.condition, each.seen, each.name) for each in runs] == [*folds, ("only en", ("en",), "magnitude")]
    assert runs[-1].config["samples_per_language"] == 6
    for found in runs:
        assert found.report == by_hand(found)


def test_what_is_found_by_trying_is_found_in_each_run(tmp_path: Path) -> None:
    found = {"language_weights": "minimax", "minimax_rounds": 1, "tune_regularisation": True}
    methods: dict[str, dict[str, Any]] = {
        "score": {"criterion": "wanda", **found},
        "obs": {"criterion": "wanda", "reconstruction": "obs", **found},
    }
    model = make_model()
    before = state_of(model)
    results = run(tmp_path / "r.jsonl", model, methods=methods)
    assert [each.name for each in results.runs.values()] == ["score", "obs"]
    for each in results.runs.values():
        assert each.config["language_weights"] == "minimax"
        assert each.report == by_hand(each)
    assert all(torch.equal(before[name], values) for name, values in state_of(model).items())


def test_weights_of_languages_that_a_run_leaves_out_do_not_count(tmp_path: Path) -> None:
    methods = {"weighed": {"criterion": "wanda", "allocation": "uniform", "language_weights": {"en": 2.0, "fr": 3.0}}}
    results = run(tmp_path / "r.jsonl", methods=methods, rotate=3, only=["sw"])
    weights = [found.config["language_weights"] for found in results.runs.values()]
    assert weights == [{"fr": 3.0}, {"en": 2.0}, {"en": 2.0, "fr": 3.0}, "equal"]
    wrong = {"weighed": {"language_weights": {"frr": 3.0}}}
    with pytest.raises(ValueError, match="language_weights names 'frr', but calibration has: en, fr, sw"):
        run(tmp_path / "wrong.jsonl", methods=wrong)


def test_what_is_there_is_not_run_again(tmp_path: Path, calibrations: list[MWandaConfig]) -> None:
    path = tmp_path / "r.jsonl"
    first = run(path, methods={"magnitude": METHODS["magnitude"]})
    lines = path.read_text()
    assert run(path, methods={"magnitude": METHODS["magnitude"]}) == first
    assert path.read_text() == lines
    assert len(calibrations) == 1
    both = run(path, sparsities=[0.6, 0.7])
    assert path.read_text().startswith(lines)
    assert len(both.runs) == 6


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": make_model(seed=1)}, "results on another model, or on other weights of it: name another file"),
        (
            {"held_out": make_rows(rows=3, length=40, seed=10)},
            "on other held-out text, or of another tokenizer, in",
        ),
        ({"held_out": make_rows("en sw", length=40, seed=9)}, "on other held-out languages .'fr' only on one side"),
        ({"tokens_per_language": 48}, r"results on \d+ held-out tokens per language and not 48"),
        ({"samples_per_language": 1}, r"results of \d+ calibration chunks per language and not 1: name another"),
        ({"languages": ["en", "fr"]}, "choose these languages, or name another file"),
    ],
)
def test_results_of_something_else_are_refused_and_it_is_named(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    path = tmp_path / "r.jsonl"
    methods = {"magnitude": METHODS["magnitude"]}
    run(path, methods=methods)
    with pytest.raises(ValueError, match=named.replace("'fr'", "fr")):
        run(path, methods=methods, **change)


def test_settings_that_were_asked_for_last_are_shown(tmp_path: Path) -> None:
    shown = []
    for group in ("row", "matrix", "row"):
        methods = {"mine": {**METHODS["magnitude"], "group": group}}
        (section,) = make_sections(run(tmp_path / "r.jsonl", methods=methods))
        shown.append(section.over_seeds("mine")["mean"].value)
    assert shown[0] == shown[2] != shown[1]
    assert len(read_results(tmp_path / "r.jsonl").runs) == 2  # type: ignore[union-attr]


def test_results_of_an_earlier_version_are_not_added_to(tmp_path: Path) -> None:
    results = run(tmp_path / "r.jsonl", methods={"magnitude": METHODS["magnitude"]})
    scores = {name: dataclasses.replace(each, digest=None) for name, each in results.dense.report.scores.items()}
    dense = dataclasses.replace(results.dense, report=dataclasses.replace(results.dense.report, scores=scores))
    append(tmp_path / "old.jsonl", dense)
    with pytest.raises(ValueError, match="written by an earlier version"):
        run(tmp_path / "old.jsonl", methods={"magnitude": METHODS["magnitude"]})


def test_results_with_another_tokenizer_are_refused(
    sample_model: PreTrainedModel, sample_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    texts = {"en": ["The loop ends with the list of values. " * 9], "fr": ["La boucle finit avec la liste. " * 9]}
    plan = ComparisonPlan(methods={"magnitude": METHODS["magnitude"]}, **{**SMALL, "tokens_per_language": 32})
    lower = copy.deepcopy(sample_tokenizer)
    lower.backend_tokenizer.normalizer = Lowercase()
    path = tmp_path / "r.jsonl"
    run_comparison(sample_model, texts, texts, path, plan, sample_tokenizer, progress=False)
    lines = path.read_text()
    with pytest.raises(ValueError, match="on other held-out text, or of another tokenizer, in"):
        run_comparison(sample_model, texts, texts, path, plan, lower, progress=False)
    assert path.read_text() == lines


def test_failure_keeps_the_model_and_what_is_finished(tmp_path: Path) -> None:
    model = make_model()
    before = state_of(model)
    # 7 divides the width of no matrix.
    with pytest.raises(ValueError, match="5:7"):
        run(tmp_path / "r.jsonl", model, patterns=["2:4", "5:7"])
    assert all(torch.equal(before[name], values) for name, values in state_of(model).items())
    found = read_results(tmp_path / "r.jsonl")
    assert [each.point for each in found.runs.values()] == ["60 %"] * 3 + ["2:4"] * 3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {}}, "nothing to run"),
        ({"sparsities": []}, "nothing to run"),
        ({"seeds": [0, 0]}, "seeds"),
        ({"seeds": [-1]}, "seed=-1"),
        ({"tokens_per_language": 1}, "tokens_per_language=1"),
        ({"sparsities": [1.5]}, "'magnitude'.*1.5"),
        ({"languages": ["en", "fr"], "rotate": 3}, "rotate=3"),
        ({"languages": ["en", "en"]}, "names a value twice"),
        ({"settings": {"blocs": "model.layers"}}, "'blocks'"),
        ({"settings": {"sparsity": 0.5}}, "'sparsity'"),
    ],
)
def test_plan_says_what_is_not_allowed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ComparisonPlan(**{"methods": METHODS, **SMALL, **changes})


def test_settings_of_all_methods_may_suit_each_of_them_in_its_own_way() -> None:
    methods = {"swaps": {"refinement": "swap"}, "whole matrices": {"group": "matrix"}}
    ComparisonPlan(**{**SMALL, "methods": methods, "settings": {"sensitivity": "fisher"}})


def test_regularisation_is_not_tuned_on_one_language() -> None:
    methods = {"tuned": {"reconstruction": "obs", "tune_regularisation": True}, "plain": {"reconstruction": "obs"}}
    plan = ComparisonPlan(**{**SMALL, "methods": methods, "only": ["sw"]})
    together, alone = plan.conditions(["en", "sw"])
    assert [name for name, _ in plan.runs(0, together)] == ["tuned", "plain"]
    assert [name for name, _ in plan.runs(0, alone)] == ["plain"]


def test_a_method_with_plans_is_pruned_by_the_one_for_the_sparsity(tmp_path: Path) -> None:
    config = MWandaConfig(sequence_length=16, samples_per_language=2, sparsity=0.6)
    planned = search_plan(make_model(), ROWS, None, config, candidates=60, progress=False).plan
    planned.save(tmp_path / "60.json")
    dataclasses.replace(planned, target=0.7).save(tmp_path / "70.json")
    paths = [str(tmp_path / name) for name in ("70.json", "60.json")]
    methods: dict[str, dict[str, Any]] = {
        "without": {"refinement": "swap"},
        "planned": {"refinement": "swap", "plan": paths},
        "elsewhere": {"plan": paths[0]},
    }
    results = run(tmp_path / "results.jsonl", methods=methods)
    found = {each.name: each for each in results.runs.values()}
    assert set(found) == {"without", "planned"}
    model = make_model()
    settings = MWandaConfig.from_dict(found["planned"].config)
    MWandaPruner(settings, progress=False).prune(model, ROWS, plan=planned)
    assert measure(model) == found["planned"].report
    assert found["without"].report != found["planned"].report
    assert run(tmp_path / "results.jsonl", methods=methods).runs.keys() == results.runs.keys()  # nothing is run again


def test_a_plan_that_is_not_there_is_named_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        ComparisonPlan(methods={"planned": {"plan": "nowhere.json"}}, sparsities=[0.6])
