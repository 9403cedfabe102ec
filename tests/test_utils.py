import dataclasses
import json
from pathlib import Path

import pytest

from optimum_mwanda import CalibrationStatistics, MWandaConfig, MWandaPruner, evaluate_languages
from optimum_mwanda.evaluation.harness.comparison import HarnessComparison
from optimum_mwanda.evaluation.harness.results import HarnessReport
from optimum_mwanda.evaluation.report import PerplexityComparison, PerplexityReport
from optimum_mwanda.reporting.page import write_html_report
from optimum_mwanda.utils import duration, portable_name, progress_bar
from optimum_mwanda.values import is_self_written

from .conftest import make_model, make_rows
from .evaluation.harness.test_results import TASKS, make_results


@pytest.mark.parametrize(
    ("name", "portable"),
    [
        ("org/model", "org/model"),
        ("gpt2", "gpt2"),
        ("/home/me/models/dense", "dense"),
        ("/home/me/models/dense/", "dense"),
        ("./dense", "dense"),
        ("../models/dense", "dense"),
        ("runs/1/dense", "dense"),
        (r"C:\models\dense", "dense"),
        ("", ""),
        (
            "/home/me/.cache/hub/models--Qwen--Qwen3-0.6B/snapshots/c1899de289a04d12100db370d81485cdf75e47ca",
            "Qwen/Qwen3-0.6B",
        ),
        ("/cache/models--gpt2/snapshots/607a30d783dfa663caf39e06633721c8d4cfcd7e/", "gpt2"),
        (r"C:\cache\models--org--model\snapshots\0123\sub", "org/model"),
    ],
)
def test_local_paths_are_cut_to_their_last_part(name: str, portable: str) -> None:
    assert portable_name(name) == portable


def test_an_existing_folder_is_a_path_even_if_it_looks_like_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert portable_name("org/model") == "model"


def test_nothing_that_may_leave_the_machine_holds_its_paths(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--model" / "snapshots" / ("0123" * 10)
    make_model().save_pretrained(folder)
    model = type(make_model()).from_pretrained(folder)
    statistics = MWandaPruner(MWandaConfig(sequence_length=8), progress=False).calibrate(model, make_rows())
    statistics.save(tmp_path / "s.safetensors")
    assert CalibrationStatistics.load(tmp_path / "s.safetensors").model == "org/model"
    report = evaluate_languages(model, None, make_rows(), progress=False)
    assert report.model == "org/model"
    write_html_report(tmp_path / "page.html", PerplexityComparison(report, {"pruned": report}))
    old = dataclasses.replace(report, model=str(folder)).to_dict()
    assert PerplexityReport.from_dict(old).model == "org/model"
    harness = dataclasses.replace(HarnessReport.from_results(make_results(TASKS)), model=str(folder))
    written = json.dumps(HarnessComparison(harness, {"pruned": harness}).to_dict())
    MWandaPruner(MWandaConfig(sequence_length=8), progress=False).apply(model, statistics)
    for text in ((tmp_path / "page.html").read_text(), written, json.dumps(model.config.mwanda_config)):
        assert str(tmp_path) not in text
        assert "0123" * 10 not in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_bar_may_learn_late_how_much_there_is(capfd: pytest.CaptureFixture[str]) -> None:
    known = iter([None, None, 3])
    assert list(progress_bar("abc", total=lambda: next(known), description="Working", show=True)) == ["a", "b", "c"]
    assert "Working: 100%" in capfd.readouterr().err


def test_names_of_text_that_the_model_wrote_are_self_alone_or_before_a_language() -> None:
    names = ["self", "self-sw", "selfish", "self_sw", "sw", "sw-self"]
    assert [name for name in names if is_self_written(name)] == ["self", "self-sw"]
