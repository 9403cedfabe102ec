"""Sums over processes: two that share the text learn what one learns from all of it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from optimum_mwanda.calibration.collector import StatisticsCollector
from optimum_mwanda.calibration.gram import GramCollector
from optimum_mwanda.calibration.reduction import Reduce
from optimum_mwanda.modeling.blocks import find_blocks, inference_mode, run_blocks
from optimum_mwanda.modeling.weights import find_weights
from optimum_mwanda.processes.group import Processes
from tests.families.matrix import FAMILIES
from tests.processes.started import results

LANGUAGES = {"en": 0.5, "fr": 0.3, "sw": 0.2}


def ids(seed: int) -> Tensor:
    return torch.randint(3, 150, (2, 12), generator=torch.Generator().manual_seed(seed))


TEXT = {"en": [ids(0), ids(1)], "fr": [ids(2)], "sw": [ids(3), ids(4), ids(5)]}
PARTS = [{"en": TEXT["en"][:1], "sw": TEXT["sw"][:2]}, {"en": TEXT["en"][1:], "fr": TEXT["fr"], "sw": TEXT["sw"][2:]}]
"""The first process has no French."""


def learn(text: dict[str, list[Tensor]], reduce: Reduce | None = None) -> dict[str, Tensor]:
    """Everything that the collectors give for a model with experts, by name."""
    model = FAMILIES["mixtral"].make()
    blocks = find_blocks(model)
    weights = find_weights(blocks)["model.layers.0"]
    statistics = StatisticsCollector(weights, list(LANGUAGES), ["positive"], reduce)
    grams = GramCollector([[weight] for weight in weights], LANGUAGES, reduce)
    with inference_mode(model), statistics, grams:
        for language, batches in text.items():
            for batch in batches:
                statistics.start(language)
                grams.start(language)
                run_blocks(model, blocks, {"input_ids": batch})
    found = {f"{name} gram": gram for name, gram in grams.finish().items()}
    for name, entry in statistics.finish().items():
        found |= {f"{name} tokens": entry.tokens, f"{name} squares": entry.square_sum} | entry.active
    return found


def work(rank: int, size: int, folder: Path) -> None:
    processes = Processes(rank, size)
    torch.save(learn(PARTS[rank], Reduce(processes, {"en", "sw"})), folder / f"{rank}.pt")


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    results(work, 2, tmp_path)
    alone = learn(TEXT)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first.keys() == second.keys() == alone.keys()
    for name, expected in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], expected, rtol=1e-5, atol=1e-7)


def test_a_part_without_a_language_is_refused_only_where_it_is_all() -> None:
    with pytest.raises(ValueError, match="No token of language 'fr' reaches"):
        learn(PARTS[0])
