import json

import pytest

from optimum_mwanda.training.merge_report import MergedMatrix, MergeReport

REPORT = MergeReport((MergedMatrix("layers.0.q", 5.0, 3.0), MergedMatrix("layers.1.q", 12.0, 4.0)))


def test_errors_by_hand() -> None:
    assert [matrix.error for matrix in REPORT.matrices] == pytest.approx([0.6, 1 / 3])
    assert REPORT.error == pytest.approx(5 / 13)


def test_an_adapter_that_has_learned_nothing_loses_nothing() -> None:
    assert MergeReport((MergedMatrix("layers.0.q", 0.0, 0.0),)).error == 0
    assert MergeReport(()).error == 0


def test_is_printed_as_a_table() -> None:
    assert str(REPORT).splitlines() == [
        "| matrix     | update | masked away | relative error |",
        "| ---------- | -----: | ----------: | -------------: |",
        "| layers.0.q |      5 |           3 |         0.6000 |",
        "| layers.1.q |     12 |           4 |         0.3333 |",
        "| **all**    |     13 |           5 |         0.3846 |",
    ]


def test_json_has_the_same_figures() -> None:
    values = json.loads(REPORT.to_json())
    assert values["error"] == REPORT.error
    assert values["matrices"][1] == {"name": "layers.1.q", "update": 12.0, "lost": 4.0, "error": 4 / 12}
