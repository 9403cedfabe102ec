"""What each way of pruning costs: time as a multiple of a bare forward pass, and memory above the loaded model.

    python benchmarks/modes.py MODEL calibration.jsonl --grid grid.json --languages en de sw

`grid.json` holds settings by name, as for `optimum-cli mwanda compare`; `"search": 24` among them measures the search
for a plan with these settings, of 24 plans at most, instead of pruning. Every round runs each in a process of its own,
one after the other. The unit is a forward pass of the blocks over the same calibration chunks in the same process, and
memory is the peak of the resident set as the operating system counts it (VmHWM), less what was resident before.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from peak_memory import peak_memory
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_mwanda import MWandaConfig, MWandaPruner, search_plan
from optimum_mwanda.data.chunks import build_chunks
from optimum_mwanda.utils import markdown_table


def measure(args: argparse.Namespace, name: str) -> None:
    """Measures one way, and prints what was found as JSON."""
    settings: dict[str, Any] = json.loads(args.grid.read_text(encoding="utf-8"))[name]
    candidates = settings.pop("search", None)
    config = MWandaConfig(
        languages=args.languages,
        sparsity=args.sparsity,
        samples_per_language=args.samples_per_language,
        sequence_length=args.sequence_length,
        **settings,
    )
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    data = load_dataset("json", data_files=str(args.calibration), split="train")
    chunks = build_chunks(data, config, model, tokenizer)
    forward = [run_all(model, chunks, config.batch_size) for _ in range(2)][1]
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    before = peak_memory()
    start = time.perf_counter()
    if candidates is None:
        MWandaPruner(config, progress=False, restore_on_failure=False).prune(model, data, tokenizer)
    else:
        search_plan(model, data, tokenizer, config, candidates=candidates, progress=False)
    seconds = time.perf_counter() - start
    print(json.dumps({"ratio": seconds / forward, "memory": peak_memory() - before, "forward": forward}))


def run_all(model: Any, chunks: Any, batch_size: int) -> float:
    """Seconds that all calibration chunks take the model, blocks alone."""
    start = time.perf_counter()
    with torch.no_grad():
        for _, inputs in chunks.batches(batch_size):
            model.model(**inputs, use_cache=False)
    return time.perf_counter() - start


def main() -> None:
    """Measures every way of a grid, round after round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("calibration", type=Path)
    parser.add_argument("--grid", type=Path, required=True)
    parser.add_argument("--languages", nargs="+", required=True)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--samples-per-language", type=int, default=12)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        measure(args, args.one)
        return
    names = list(json.loads(args.grid.read_text(encoding="utf-8")))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(args.rounds):
        for name in names:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", name]
            run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[name].append(json.loads(run.stdout.splitlines()[-1]))
    rows = [
        [
            name,
            f"{statistics.median(each['ratio'] for each in runs):.1f}",
            f"{min(each['ratio'] for each in runs):.1f} to {max(each['ratio'] for each in runs):.1f}",
            f"{statistics.median(each['memory'] for each in runs) / 2**20:,.0f}",
        ]
        for name, runs in found.items()
    ]
    print(markdown_table(["settings", "x bare forward", "spread", "peak above the model, MiB"], rows))


if __name__ == "__main__":
    main()
