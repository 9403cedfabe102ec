"""An error in one process ends all of them with that error, in bounded time, with the models as they were."""

import os
from typing import Any

import pytest

from .failing import in_turn
from .started import results


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """How both processes ended, one failure after the other in the same group."""
    folder = tmp_path_factory.mktemp("failing")
    os.mkfifo(folder / "given up")
    return results(in_turn, 2, folder)


@pytest.mark.parametrize(
    ("name", "kind", "message", "where"),
    [
        ("other text", "ValueError", "differ in the calibration text. Give all of them the same", 0),
        ("other weights", "ValueError", "differ in the model or its weights. Give all of them the same", 0),
        ("no text", "ValueError", "No language has enough tokens: the dataset is empty.", 1),
        ("no memory", "MemoryError", "no memory is left", 1),
        ("no room for sums", "MemoryError", "no memory is left for sums", 1),
        ("other choice", "ValueError", "differ in which weights they prune", 0),
        ("infinite", "FloatingPointError", "in language 'sw'", 1),
    ],
)
def test_an_error_of_one_process_is_raised_in_all(
    name: str, kind: str, message: str, where: int, ends: list[dict[str, Any]]
) -> None:
    for process in ends:
        assert process[name]["type"] == kind
        assert message in process[name]["message"]
        assert process[name]["notes"] == [f"This happened in process {where} of 2."]


def test_no_process_waits_for_ever(ends: list[dict[str, Any]]) -> None:
    for process in ends:  # the second one only finds out when it gets there
        assert process["wait"]["type"] == "LostProcessError"
        assert process["wait"]["message"].startswith("The other process ended early, or worked")
