"""What pruning a model takes, from disk and in memory: peaks of this process above what it took before, in bytes.

As argument: the folder of the model.
"""

import gc
import re
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
import transformers.models.llama.modeling_llama
import transformers.models.mixtral.modeling_mixtral
import transformers.models.qwen3.modeling_qwen3

from optimum_mwanda import MWandaConfig, MWandaPruner, check_saved, prune_checkpoint

SETTINGS: dict[str, Any] = {"samples_per_language": 2, "sequence_length": 64, "batch_size": 2}


def rows() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(8000, (2, 2, 64), generator=generator).tolist()
    return [{"language": f"l{number}", "input_ids": row} for number, each in enumerate(ids) for row in each]


def in_memory(dense: Path, pruned: Path) -> None:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(dense, dtype="auto")
    MWandaPruner(MWandaConfig(**SETTINGS), progress=False, restore_on_failure=False).prune(model, rows())
    model.save_pretrained(pruned)
    check_saved(model, pruned)


def streamed(dense: Path, pruned: Path) -> None:
    prune_checkpoint(dense, pruned, MWandaConfig(**SETTINGS), rows(), progress=False)


MODES = {"stream": streamed, "memory": in_memory}
"""What takes least comes first, so that it leaves little behind that the other one could use."""


def resident(what: str) -> int:
    """VmRSS, or VmHWM for its peak, as the operating system counts it, in bytes."""
    (size,) = re.findall(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(size) * 1024


if __name__ == "__main__":
    torch.set_num_threads(1)
    dense = Path(sys.argv[1])
    for mode, prune in MODES.items():
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
        start = resident("VmRSS")
        prune(dense, dense.with_name(f"{dense.name}-{mode}"))
        print(mode, resident("VmHWM") - start)
