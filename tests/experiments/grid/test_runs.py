"""The file of JSON lines."""

from pathlib import Path

import pytest

from optimum_mwanda.experiments.grid.runs import append, read_results

from .made import make_results, make_run, write

RESULTS = make_results(
    make_run("größe", 0.1, 0.2, 0.3), make_run("ria", 0.1, 0.1, 0.2, pattern="2:4", fold=(1, 3), seed=7)
)


def test_results_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "made" / "results.jsonl"
    write(path, RESULTS)
    found = read_results(path)
    assert found == RESULTS
    assert len(path.read_text().splitlines()) == 3
    first, second = found.runs.values()  # type: ignore[union-attr]
    assert (first.point, first.sparsity, first.seed) == ("60 %", 0.6, 0)
    assert (second.point, second.sparsity, second.seed) == ("2:4", None, 7)


def test_nothing_is_no_results(tmp_path: Path) -> None:
    assert read_results(tmp_path / "none.jsonl") is None
    (tmp_path / "empty.jsonl").touch()
    assert read_results(tmp_path / "empty.jsonl") is None


def test_line_that_an_interrupt_has_cut_is_left_out_and_written_over(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    write(path, RESULTS)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index("größe".encode()) + 3])  # within a character
    assert read_results(path).runs == {}  # type: ignore[union-attr]
    path.write_bytes(whole[:-30])
    found = read_results(path)
    assert list(found.runs) == list(RESULTS.runs)[:1]  # type: ignore[union-attr]
    append(path, list(RESULTS.runs.values())[1])
    assert path.read_bytes() == whole


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    write(path, RESULTS)
    dense, *runs = path.read_text().splitlines(keepends=True)
    path.write_text(dense + '{"language": "en"}\n' + "".join(runs))
    with pytest.raises(ValueError, match="line 2"):
        read_results(path)
    path.write_text("".join(runs))
    with pytest.raises(ValueError, match="first line"):
        read_results(path)
