"""A model with blocks on disk gives what it gives in memory, and each block is read once for all batches."""

from pathlib import Path

import pytest
import torch

from optimum_mwanda.modeling.block_source import BlockSource
from optimum_mwanda.modeling.blocks import find_blocks, inference_mode, run_model
from optimum_mwanda.walking.running import run_block_by_block
from optimum_mwanda.walking.store import InMemory
from tests.families.matrix import FAMILIES

from .test_offloaded import on_disk

NAMES = ("llama", "gemma3", "gemma4_text", "gpt2", "bloom", "mixtral", "jamba", "bart", "t5")


@pytest.mark.parametrize("name", [name for name in NAMES if FAMILIES[name].is_current])
def test_outputs_are_those_of_the_model_in_memory(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = FAMILIES[name].make()
    model, batches = on_disk(plain, tmp_path), FAMILIES[name].batches() * 2
    read, names = BlockSource._read, []
    monkeypatch.setattr(BlockSource, "_read", lambda self, name, *rest: names.append(name) or read(self, name, *rest))
    with inference_mode(model), inference_mode(plain):
        for found, batch in zip(run_block_by_block(model, batches, InMemory), batches, strict=True):
            assert torch.equal(found.logits, run_model(plain, batch).logits)
    hands_on = name in ("t5", "gemma4_text")  # of these, recording runs the blocks for each batch
    assert {block: names.count(block) for block in names} == dict.fromkeys(
        find_blocks(model), 1 + len(batches) * hands_on
    )
