"""The benchmark of reading only as much as is needed, on the sample in small."""

import re

import pytest

from tests.conftest import SAMPLE_DATA, SAMPLE_MODEL, load_benchmark


def test_less_text_gives_nearly_the_same_masks(capsys: pytest.CaptureFixture[str]) -> None:
    module = load_benchmark("settling")
    words = ("--languages", "en", "ta", "--samples", "8", "--sequence-length", "32", "--tolerances", "0.3")
    module.main(["--model", str(SAMPLE_MODEL), "--calibration", str(SAMPLE_DATA / "calibration.jsonl"), *words])
    lines = capsys.readouterr().out.splitlines()
    cells = {row[0]: row[1:] for row in ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:])}
    assert [re.sub(r"\d+ chunks", "N chunks", name) for name in cells] == [
        *("all text", "tolerance 0.3", "evenly, N chunks", "other rows")
    ]
    assert cells["all text"] == ["512", "256 to 256", "0.0%", "100.00%"]
    tokens, _, saved, agreement = cells["tolerance 0.3"]
    assert int(tokens) < 512
    assert float(saved.rstrip("%")) == pytest.approx(100 * (1 - int(tokens) / 512), abs=0.05)
    assert 80 < float(agreement.rstrip("%")) < 100
