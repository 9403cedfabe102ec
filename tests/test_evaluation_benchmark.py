"""The benchmark of the memory that an evaluation takes, on the sample in small."""

import sys

import pytest

from tests.conftest import BENCHMARKS, SAMPLE_DATA, SAMPLE_MODEL, load_benchmark
from tests.forked import python


def test_memory_is_counted_beside_that_of_the_loaded_models(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "executable", python())
    benchmark = load_benchmark("evaluation")
    words = ["--test", str(SAMPLE_DATA / "evaluation.jsonl"), "--languages", "en", "--threads", "1"]
    benchmark.main([str(SAMPLE_MODEL), *words, "--windows", "4x32", "--tokens", "64"])
    _, _, *lines = capsys.readouterr().out.splitlines()
    dense, both = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    assert dense[:2] == ["4 x 32", "dense"]
    assert both[:2] == ["4 x 32", "compare"]
    assert 120 < int(dense[2]) < 128  # four windows, of which the first one's first token is not predicted
    assert int(both[2]) == 2 * int(dense[2])
    loaded, above = int(dense[4]), int(dense[5])
    assert 0 <= above < 200 < loaded
