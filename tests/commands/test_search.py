"""`optimum-cli mwanda search`, from the dense model to the pruned one and its report."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from optimum_mwanda import MWandaConfig, MWandaPruner
from optimum_mwanda.experiments.search.outcome import SparsitySearch
from optimum_mwanda.record.verification import sparsity_record, verify_sparsity

from ..conftest import SAMPLE_DATA, SAMPLE_MODEL
from .conftest import SMALL, Run

Cli = Callable[..., Run]
DATA = ("--dataset", SAMPLE_DATA / "calibration.jsonl", "--eval-dataset", SAMPLE_DATA / "evaluation.jsonl")
FEW = ("--languages", "de", "ta", "--samples-per-language", "4", "--sequence-length", "64")
FEW_HELD_OUT = ("--eval-languages", "de", "ta", "uk", "--tokens-per-language", "256", "--quiet")
GRID = ("--bounds", "0.3", "0.8", "--resolution", "0.1")
SAMPLE = (SAMPLE_MODEL, *DATA, *FEW, *FEW_HELD_OUT, *GRID)


def test_prunes_at_the_highest_sparsity_within_the_limit_and_reports_every_trial(cli: Cli, tmp_path: Path) -> None:
    model, *words = SAMPLE
    out, report = tmp_path / "out", tmp_path / "report.json"
    run = cli("search", model, out, *words, "--max-degradation", "0.06", "--protect", "ta=4", "--trials", report)
    assert run.code == 0, run.err
    search = SparsitySearch.from_dict(json.loads(report.read_text(encoding="utf-8")))
    assert search.chosen is not None
    assert 0.3 <= search.chosen.sparsity < 0.8
    assert search.chosen.worst <= 0.06
    above = [trial for trial in search.trials if trial.sparsity == pytest.approx(search.chosen.sparsity + 0.1)]
    assert [trial.worst > 0.06 for trial in above] == [True]
    assert set(search.chosen.degradations) == {"de", "ta", "uk"}

    assert verify_sparsity(out).ok
    record = sparsity_record(out)
    assert record is not None
    assert record.achieved_sparsity == pytest.approx(search.chosen.sparsity, abs=1e-3)
    assert record.languages["ta"].weight == pytest.approx(0.8)
    assert MWandaConfig.from_pretrained(out).sparsity == search.chosen.sparsity
    kept = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    assert list(kept["pruned"]) == ["pruned"]
    scores = {each["language"]: each["nll"] for each in kept["pruned"]["pruned"]["languages"]}
    assert scores == {name: score.nll for name, score in search.comparison.pruned["protected"].scores.items()}
    assert "uk" in (out / "README.md").read_text(encoding="utf-8")

    assert search.to_markdown() in run.out
    assert f"Wrote {out}." in run.out
    assert f"Wrote {report}." in run.out
    assert run.err == ""


def test_without_a_folder_nothing_is_written_but_the_report(cli: Cli, tmp_path: Path) -> None:
    report = tmp_path / "new" / "report.md"
    words = ("--strengths", "0", "0.04", "--max-degradation", "0.5", "--trials", report, "--json")
    run = cli("search", *SAMPLE, *words)
    assert run.code == 0, run.err
    search = SparsitySearch.from_dict(run.json)
    assert run.json["output"] is None
    assert {trial.strength for trial in search.trials} == {0.0, 0.04}
    assert report.read_text(encoding="utf-8") == search.to_markdown() + "\n"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["report.md"]


def test_nothing_found_is_a_model_error_with_a_report_and_no_model(cli: Cli, tmp_path: Path) -> None:
    model, *words = SAMPLE
    report = tmp_path / "report.json"
    run = cli("search", model, tmp_path / "out", *words, "--max-degradation", "0.0001", "--trials", report)
    assert run.code == 4
    assert "No sparsity was found, not even the lowest: sparsity 0.3" in run.error
    assert json.loads(report.read_text(encoding="utf-8"))["chosen"] is None
    assert list(tmp_path.iterdir()) == [report]


@pytest.mark.parametrize(
    "settings",
    [
        ("--criterion", "wanda"),
        ("--calibration", "sequential"),
        ("--criterion", "sparsegpt"),
        ("--reconstruction", "obs"),
    ],
)
def test_same_as_prune_at_that_sparsity(
    cli: Cli, model: Path, data: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    found, pruned = tmp_path / "found", tmp_path / "pruned"
    words = ("--dataset", data, *settings, *SMALL)
    limits = ("--max-degradation", "1", "--bounds", "0.4", "0.6", "--resolution", "0.1")
    run = cli("search", model, found, *words, "--eval-dataset", data, *limits)
    assert run.code == 0, run.err
    assert "highest sparsity of the bounds" in run.out
    assert cli("prune", model, pruned, *words, "--sparsity", "0.6").code == 0
    one, other = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (found, pruned))
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert sparsity_record(found) == sparsity_record(pruned)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--protect", "sw"], 2, "'sw' is not a language with a factor"),
        (["--protect", "=2"], 2, "'=2' is not a language with a factor"),
        (["--protect", "sw=0"], 2, "protect['sw']=0.0"),
        (["--protect", "yo=2"], 3, "'yo'"),
        (["--bounds", "0.9", "0.1"], 2, "the lower sparsity first"),
        (["--sparsity", "0.5"], 2, "'--sparsity' is not known"),
        (["--allocation", "uniform", "--strengths", "0.1"], 2, "no effect with allocation='uniform'"),
        (["--eval-languages", "yo"], 3, "'yo'"),
        (["--include", "*.no"], 4, "*.no"),
    ],
)
def test_exit_codes_and_one_line(
    cli: Cli, model: Path, data: Path, tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    run = cli("search", model, tmp_path / "out", "--dataset", data, "--eval-dataset", data, *SMALL, *words)
    assert run.code == code, run.err
    assert message in run.error
    assert list(tmp_path.iterdir()) == []


def test_calibration_text_is_asked_for_before_anything_is_loaded(cli: Cli, data: Path, tmp_path: Path) -> None:
    run = cli("search", tmp_path / "none", "--eval-dataset", data)
    assert run.code == 2
    assert "give --dataset" in run.error


def test_existing_report_is_kept(cli: Cli, model: Path, data: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text("mine")
    run = cli("search", model, "--dataset", data, "--eval-dataset", data, "--trials", report, *SMALL)
    assert run.code == 2
    assert "--overwrite" in run.error
    assert report.read_text() == "mine"


def test_a_search_that_was_stopped_goes_on_with_the_trials_that_it_has(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*DATA, *FEW, *FEW_HELD_OUT, *GRID, "--max-degradation", "0.06")
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert cli("search", SAMPLE_MODEL, whole, *words, "--trials", tmp_path / "whole.json").code == 0
    apply, sparsities = MWandaPruner.apply, []

    def counted(self: MWandaPruner, *args: Any) -> Any:
        sparsities.append(self.config.sparsity)
        if len(sparsities) == 2:
            raise KeyboardInterrupt
        return apply(self, *args)

    monkeypatch.setattr(MWandaPruner, "apply", counted)
    assert cli("search", SAMPLE_MODEL, out, *words).code == 130
    assert not out.exists()
    assert len(list((tmp_path / ".out.mwanda" / "progress").glob("measured-*.safetensors"))) == 2  # the dense one too
    refused = cli("search", SAMPLE_MODEL, out, *words, "--seed", "1")
    assert refused.code == 3
    assert "settings.seed was 0, and is 1" in refused.err
    assert cli("search", SAMPLE_MODEL, out, *words, "--trials", tmp_path / "out.json").code == 0
    assert sparsities[0] not in sparsities[2:-1]  # only the model at the end may be pruned once more
    assert (tmp_path / "out.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert not (tmp_path / ".out.mwanda").exists()
