"""The language that loses most loses less, within the bound, and the model ends dense."""

import copy
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from optimum_mwanda import MWandaConfig, MWandaPruner, find_language_weights, sparsity_record
from optimum_mwanda.choosing import worst_language
from optimum_mwanda.evaluation.divergence import Divergence
from optimum_mwanda.processes.group import Processes
from optimum_mwanda.pruning import checks
from tests.conftest import assert_untouched, make_model, make_rows, state_of

Rows = dict[str, list[dict[str, str]]]
TINY: dict[str, Any] = {"sequence_length": 16, "samples_per_language": 4, "sparsity": 0.6}
METHODS: list[dict[str, Any]] = [
    {"criterion": "wanda"},
    {"criterion": "wanda", "allocation": "uniform", "calibration": "sequential"},
    {"refinement": "swap"},
    {"criterion": "alps", "allocation": "owl"},
    {"reconstruction": "obs+block", "reconstruction_epochs": 1},
]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_rounds_prune_from_the_dense_weights_and_leave_them(method: dict[str, Any]) -> None:
    model, rows = make_model(), make_rows(rows=6)
    before = state_of(model)
    config = MWandaConfig(**TINY, **method, minimax_rounds=2)
    found = find_language_weights(model, rows, config=config, progress=False)
    assert_untouched(model, before)
    assert sparsity_record(model) is None
    assert found == find_language_weights(model, rows, config=config, progress=False)
    first, *later = found.rounds
    assert first.weights == {"en": 1.0, "fr": 1.0, "sw": 1.0}
    assert len(later) == 2
    assert later[0].weights[first.worst] == max(later[0].weights.values()) > 1
    assert all(sum(each.weights.values()) == pytest.approx(3, abs=1e-5) for each in later)
    best = found.rounds[found.chosen]
    assert best.losses[best.worst] <= first.losses[first.worst]
    assert best.mean <= 1.02 * first.mean
    assert found.weights == best.weights
    assert found.note in str(found)


def test_a_language_that_loses_more_gets_more(
    sample_model: PreTrainedModel, sample_tokenizer: PreTrainedTokenizerBase, sample_rows: Rows
) -> None:
    config = MWandaConfig(languages=("de", "en", "ta"), **{**TINY, "sequence_length": 64}, minimax_bound=1.0)
    found = find_language_weights(sample_model, sample_rows["calibration"], sample_tokenizer, config, progress=False)
    first, best = found.rounds[0], found.rounds[found.chosen]
    assert found.chosen > 0
    assert best.losses[best.worst] < first.losses[first.worst]
    assert best.weights[first.worst] > 1


@pytest.mark.parametrize("method", [METHODS[0], METHODS[2]], ids=str)
def test_prune_takes_the_weights_and_can_be_repeated(method: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worst_language, "best_round", lambda rounds, bound: 1)
    model, again, rows = make_model(), make_model(), make_rows(rows=6)
    config = MWandaConfig(**TINY, **method, language_weights="minimax", minimax_rounds=1)
    MWandaPruner(config, progress=False).prune(model, rows)
    record = sparsity_record(model)
    assert record is not None
    found = find_language_weights(again, rows, config=config, progress=False)
    assert record.settings["language_weights"] == found.weights
    assert record.chosen == {"language_weights": found.note}
    MWandaPruner(MWandaConfig.from_dict(record.settings), progress=False).prune(again, rows)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
    shares = {name: each.weight for name, each in record.languages.items()}
    assert shares == pytest.approx({name: weight / 3 for name, weight in found.weights.items()}, abs=1e-6)


@pytest.mark.parametrize("method", [METHODS[0], METHODS[3]], ids=str)
@pytest.mark.parametrize("number", [0, 1])
def test_a_failure_in_any_round_leaves_the_model_dense(
    method: dict[str, Any], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, measured = make_model(), []
    before = state_of(model)

    def fails(self: Divergence) -> dict[str, float]:
        measured.append(copy.deepcopy(state_of(model)))
        if len(measured) > number:
            raise FloatingPointError("no")
        return {"en": 1.0, "fr": 2.0, "sw": 3.0}

    monkeypatch.setattr(Divergence, "measure_all", fails)
    config = MWandaConfig(**TINY, **method, language_weights="minimax")
    with pytest.raises(FloatingPointError, match="no"):
        MWandaPruner(config, progress=False, restore_on_failure=False).prune(model, make_rows())
    assert_untouched(model, before)
    assert sparsity_record(model) is None
    assert all(any(not torch.equal(each[name], before[name]) for name in before) for each in measured)


def test_beside_tuned_regularisation_both_are_in_the_record() -> None:
    model = make_model()
    settings = {"reconstruction": "obs", "tune_regularisation": True, "language_weights": "minimax"}
    config = MWandaConfig(**TINY, **settings, minimax_rounds=1)
    MWandaPruner(config, progress=False).prune(model, make_rows("en sw"))
    record = sparsity_record(model)
    assert record is not None
    assert list(record.chosen) == ["regularisation", "language_weights"]


def test_what_has_only_statistics_is_told_to_prune() -> None:
    model, rows = make_model(), make_rows()
    pruner = MWandaPruner(MWandaConfig(**TINY, language_weights="minimax"), progress=False)
    statistics = pruner.calibrate(model, rows)
    for use in (pruner.allocate, pruner.apply):
        with pytest.raises(ValueError, match=r"pruning several times: call prune\(model, dataset\)"):
            use(model, statistics)


def test_where_languages_weigh_nothing_minimax_changes_nothing() -> None:
    model = make_model()
    config = MWandaConfig(**TINY, criterion="magnitude", allocation="uniform", language_weights="minimax")
    MWandaPruner(config, progress=False).prune(model)
    record = sparsity_record(model)
    assert record is not None
    assert not record.chosen
    with pytest.raises(ValueError, match="languages weigh nothing"):
        find_language_weights(model, make_rows(), config=config)


def test_one_language_is_not_weighed_anew() -> None:
    found = find_language_weights(make_model(), make_rows("en"), config=MWandaConfig(**TINY), progress=False)
    assert (len(found.rounds), found.weights) == (1, {"en": 1.0})


def test_without_a_chunk_to_hold_back_it_is_refused() -> None:
    config = MWandaConfig(**{**TINY, "samples_per_language": 1})
    with pytest.raises(ValueError, match="raise samples_per_language"):
        find_language_weights(make_model(), make_rows(), config=config, progress=False)


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    monkeypatch.setattr(checks, "current", lambda: Processes(0, 2))
    with pytest.raises(ValueError, match="must be in the memory of one process"):
        find_language_weights(model, make_rows(), config=MWandaConfig(**TINY))
