"""The benchmark of reading while the model runs, on the sample in small."""

import pytest

from tests.conftest import SAMPLE_DATA, SAMPLE_MODEL, load_benchmark


@pytest.mark.parametrize(
    "words", [[], ["--tokens-per-second", "1e6", "--kernels", "1"], ["--streams"]], ids=["model", "stand-in", "streams"]
)
def test_both_ways_of_reading_are_timed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    module = load_benchmark("reading")
    given = ["--model", str(SAMPLE_MODEL), "--dataset", str(SAMPLE_DATA / "calibration.jsonl"), "--rounds", "1"]
    module.main([*given, "--samples", "1", "--sequence-length", "32", *words])
    counted, _, _, *rows = capsys.readouterr().out.splitlines()
    assert counted.startswith("448 tokens, read at ")
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert [row[0] for row in cells] == ["reading alone", "read first", "read while the model runs"]
    assert cells[1][3] == "1.000 (1.000 to 1.000)"
    assert all(float(row[1]) > 0 and float(row[2]) > 0 for row in cells)
