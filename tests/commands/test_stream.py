"""`optimum-cli mwanda prune --stream`."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optimum_mwanda.storage.journal import Journal

from ..conftest import SAMPLE_DATA, SAMPLE_MODEL
from .conftest import Run

Cli = Callable[..., Run]
WORDS = (
    *("--dataset", SAMPLE_DATA / "calibration.jsonl", "--languages", "de", "ta"),
    *("--samples-per-language", "2", "--sequence-length", "64", "--quiet"),
)


def same_files(one: Path, other: Path) -> bool:
    files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (one, other)]
    return files[0] == files[1]


def test_a_streamed_checkpoint_is_the_same(cli: Cli, tmp_path: Path) -> None:
    evaluated = ("--eval-dataset", SAMPLE_DATA / "evaluation.jsonl", "--tokens-per-language", "300")
    for folder, more in (("plain", ()), ("streamed", ("--stream", "--activations", tmp_path))):
        run = cli("prune", SAMPLE_MODEL, tmp_path / folder, *WORDS, *evaluated, *more)
        assert run.code == 0, run.err
        assert run.err == ""
    assert (tmp_path / "plain" / "evaluation.json").is_file()
    assert same_files(tmp_path / "plain", tmp_path / "streamed")
    assert cli("prune", SAMPLE_MODEL, tmp_path / "small", *WORDS, "--stream", "--compressed").code == 0
    assert cli("inspect", tmp_path / "small").code == 0


def test_the_same_command_goes_on_and_others_are_refused(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("prune", SAMPLE_MODEL, tmp_path / "whole", *WORDS, "--stream").code == 0
    put, parts = Journal.put, []

    def interrupted(self: Journal, *args: Any) -> Path:
        parts.append(args[:2])
        if len(parts) == 9:  # six blocks are calibrated, two are pruned
            raise KeyboardInterrupt
        return put(self, *args)

    monkeypatch.setattr(Journal, "put", interrupted)
    out = tmp_path / "out"
    assert cli("prune", SAMPLE_MODEL, out, *WORDS, "--stream").code == 130
    assert not out.exists()
    without = cli("prune", SAMPLE_MODEL, out, *WORDS)
    assert without.code == 2
    assert "an interrupted run left its progress" in without.err
    other = cli("prune", SAMPLE_MODEL, out, *WORDS, "--stream", "--sparsity", "0.6")
    assert other.code == 3
    assert "settings.sparsity was 0.5, and is 0.6" in other.err
    shutil.copytree(tmp_path / ".out.mwanda", tmp_path / ".anew.mwanda")
    done = len(parts)
    assert cli("prune", SAMPLE_MODEL, out, *WORDS, "--stream").code == 0
    assert [kind for kind, _ in parts[done:]] == ["pruned"] * 4
    assert same_files(out, tmp_path / "whole")
    anew = (tmp_path / "anew", *WORDS, "--sparsity", "0.6", "--stream", "--restart")
    assert cli("prune", SAMPLE_MODEL, *anew).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["anew", "out", "whole"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--restart",), "--restart belongs to --stream"),
        (("--stream", "--device-map", '{"": "cpu"}'), "one device"),
        (("--stream", "--device-map", "auto"), "one device"),
        (("--stream", "--refinement", "swap", "--tune-regularisation"), "--tune-regularisation tries settings"),
        (("--stream", "--language-weights", "minimax"), "--language-weights minimax tries settings"),
        (("--stream", "--calibration-tolerance", "0.1"), "--calibration-tolerance needs the whole model"),
    ],
)
def test_what_does_not_go_together_is_said_at_once(
    words: tuple[Any, ...], message: str, cli: Cli, tmp_path: Path
) -> None:
    run = cli("prune", SAMPLE_MODEL, tmp_path / "out", *WORDS, *words)
    assert run.code == 2
    assert message in run.err
    assert list(tmp_path.iterdir()) == []
