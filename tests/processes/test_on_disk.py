"""Processes that share the text may each read the blocks of the model from disk."""

from pathlib import Path
from typing import Any

from torch import distributed

from optimum_mwanda import MWandaConfig, MWandaPruner
from optimum_mwanda.loading.streamed import blocks_on_disk

from ..families.matrix import FAMILIES
from ..walking.test_offloaded import same
from .started import results

SETTINGS: tuple[dict[str, Any], ...] = ({}, {"calibration": "sequential", "refinement": "swap"})


def prune(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """Prunes a model in memory and one on disk, both in all processes; whether they are equal."""
    found = []
    for number, settings in enumerate(SETTINGS):
        plain = FAMILIES["llama"].make()
        plain.save_pretrained(folder / f"{number}")  # the first process alone writes
        distributed.barrier()
        places = blocks_on_disk(plain, "cpu")
        offload = str(folder / f"offload-{number}-{rank}")
        model = type(plain).from_pretrained(folder / f"{number}", device_map=places, offload_folder=offload)
        for each in (plain, model):
            config = MWandaConfig(sequence_length=24, batch_size=2, **settings)
            MWandaPruner(config, progress=False).prune(each, FAMILIES["llama"].rows())
        found.append(same(model, plain))
    return {"equal": found}


def test_blocks_on_disk_are_pruned_as_in_memory(tmp_path: Path) -> None:
    assert [found["equal"] for found in results(prune, 2, tmp_path)] == [[True, True]] * 2
