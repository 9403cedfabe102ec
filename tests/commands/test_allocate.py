"""`optimum-cli mwanda allocate`, and what `prune` and `apply` make of its plan."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optimum_mwanda import SparsityPlan, sparsity_map
from optimum_mwanda.evaluation.divergence import Divergence
from optimum_mwanda.record.verification import sparsity_record

from ..conftest import SAMPLE_DATA, SAMPLE_MODEL
from .conftest import Run

Cli = Callable[..., Run]
FEW = ("--languages", "de", "ta", "--samples-per-language", "4", "--sequence-length", "64", "--sparsity", "0.6")
SAMPLE = ("--dataset", SAMPLE_DATA / "calibration.jsonl", *FEW, "--quiet")


def test_a_plan_that_was_searched_gives_every_matrix_its_sparsity(cli: Cli, tmp_path: Path) -> None:
    file, out = tmp_path / "plan.json", tmp_path / "out"
    run = cli("allocate", SAMPLE_MODEL, file, *SAMPLE, "--search", "20", "--proposed-by", "exchanges")
    assert run.code == 0, run.err
    plan = SparsityPlan.load(file)
    assert str(plan) in run.out
    assert "20 plans were tried" in run.out
    assert plan.planned == pytest.approx(0.6)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]

    run = cli("prune", SAMPLE_MODEL, out, *SAMPLE, "--plan", file)
    assert run.code == 0, run.err
    wanted = {name: sparsity for block in plan.blocks for name, sparsity in block.weights.items()}
    assert len(set(wanted.values())) > 1
    assert sparsity_map(out) == {name: pytest.approx(sparsity, abs=0.02) for name, sparsity in wanted.items()}
    record = sparsity_record(out)
    assert record is not None
    assert record.plan == "search"
    assert "search allocation" in record.method
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "--plan plan.json" in card

    stats = tmp_path / "stats.safetensors"
    assert cli("calibrate", SAMPLE_MODEL, stats, *SAMPLE[:-3], "--quiet").code == 0
    run = cli("apply", SAMPLE_MODEL, stats, tmp_path / "applied", *FEW, "--plan", file)
    assert run.code == 0, run.err
    assert sparsity_map(tmp_path / "applied") == sparsity_map(out)


def test_a_search_begins_with_a_plan_that_is_given(cli: Cli, tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    run = cli("allocate", SAMPLE_MODEL, first, *SAMPLE, "--search", "2")
    assert run.code == 0, run.err
    assert "and 0 were better" not in run.out
    reached = [line.split("|")[3].strip() for line in run.out.splitlines() if line.count("|") == 4]
    run = cli("allocate", SAMPLE_MODEL, second, *SAMPLE, "--search", "1", "--plan", first)
    assert run.code == 0, run.err
    begun = [line.split("|")[2].strip() for line in run.out.splitlines() if line.count("|") == 4]
    assert begun[2:] == reached[2:]  # but for the header
    assert len(begun) > 2


def test_without_a_search_the_plan_is_that_of_the_allocation(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    run = cli("allocate", SAMPLE_MODEL, file, *SAMPLE, "--allocation", "owl", "--json")
    assert run.code == 0, run.err
    plan = SparsityPlan.load(file)
    assert plan.allocation == "owl"
    assert run.json == {"output": str(file), **json.loads(file.read_text())}
    assert not any(block.weights for block in plan.blocks)


def test_a_search_that_was_stopped_goes_on(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("allocate", SAMPLE_MODEL, tmp_path / "plan.json", *SAMPLE, "--search", "8")
    assert cli(*words).code == 0
    whole = SparsityPlan.load(tmp_path / "plan.json")
    (tmp_path / "plan.json").unlink()
    measured: list[int] = []
    measure = Divergence.measure

    def counted(self: Divergence, part: int) -> dict[str, float]:
        measured.append(part)
        if len(measured) == 6:
            signal.raise_signal(signal.SIGINT)
        return measure(self, part)

    monkeypatch.setattr(Divergence, "measure", counted)
    assert cli(*words).code == 130
    assert not (tmp_path / "plan.json").exists()
    before = len(measured)
    assert cli(*words).code == 0
    assert SparsityPlan.load(tmp_path / "plan.json") == whole
    again = len(measured) - before
    assert cli(*words, "--overwrite").code == 0
    assert len(measured) - before - again > again  # nothing is left of the search that was finished


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (
            ("--criterion", "magnitude", "--allocation", "uniform", "--search", "5"),
            2,
            "--search tries plans on text: give --dataset.",
        ),
        ((*SAMPLE, "--plan", SAMPLE_MODEL / "config.json"), 2, "--plan belongs to --search"),
        ((*SAMPLE, "--search", "5", "--plan", SAMPLE_MODEL / "config.json"), 3, "holds no plan"),
        ((*SAMPLE, "--search", "0"), 3, "candidates=0 is not allowed"),
        ((*SAMPLE[:-3], "--pattern", "2:4", "--search", "5"), 3, "nothing to search for"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    words: tuple[Any, ...], code: int, reason: str, cli: Cli, tmp_path: Path
) -> None:
    run = cli("allocate", SAMPLE_MODEL, tmp_path / "plan.json", *words)
    assert (run.code, reason in run.err) == (code, True), run.err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_plan_is_refused_before_the_work(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    run = cli("prune", SAMPLE_MODEL, tmp_path / "out", *SAMPLE, "--plan", tmp_path / "plan.json")
    assert run.code == 3
    assert "holds no plan that this version reads" in run.err
    assert not (tmp_path / "out").exists()


def test_several_sparsities_and_one_plan_are_refused(cli: Cli, tmp_path: Path) -> None:
    words = ("--sparsity", "0.5", "0.6", "--plan", tmp_path / "plan.json")
    run = cli("apply", SAMPLE_MODEL, tmp_path / "stats", tmp_path / "out", *words)
    assert run.code == 2
    assert "give one --sparsity" in run.err
