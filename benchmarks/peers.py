"""What other programs take to prune the same model on the same tokens; `speed.py --peers` uses it.

Each job has a process of its own. That of llm-compressor has its own environment too: it loads the model, runs its
blocks over the tokens, prunes, and tells both times and the peak of its memory above that of the loaded model.
Published code runs in our environment, on what entered the matrices of the model (`published.py`).
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import published

BEFORE = """
import ctypes, json, re, sys, time
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM

source, file, threads, tokenizer = sys.argv[1:]
torch.set_num_threads(int(threads))
rows = json.loads(Path(file).read_text())
model = AutoModelForCausalLM.from_pretrained(source, dtype="auto").eval()
for parameter in model.parameters():
    parameter.data = parameter.data.clone()  # in memory, and not in a mapped file

def forward():
    start = time.perf_counter()
    with torch.no_grad():
        for batch in torch.tensor([row["input_ids"] for row in rows]).split(4):
            model.model(input_ids=batch, use_cache=False)
    return time.perf_counter() - start

def memory(kind):
    return int(re.search(kind + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

forward()
before = [forward() for _ in range(3)]

def begin():
    # after the imports, and without freed memory of the forward passes; the peak begins anew
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS"), time.perf_counter()
"""

AFTER = """
seconds = time.perf_counter() - start
peak = memory("VmHWM") - loaded
times = sorted([*before, *(forward() for _ in range(3))])
zeros = sum(int((p == 0).sum()) for n, p in model.named_parameters() if "_proj" in n)
total = sum(p.numel() for n, p in model.named_parameters() if "_proj" in n)
print(json.dumps({"seconds": seconds, "forward": times[len(times) // 2], "peak": peak, "sparsity": zeros / total}))
"""

OURS = """
from optimum_mwanda import MWandaConfig, MWandaPruner
loaded, start = begin()
config = MWandaConfig({settings}, allocation="uniform", sparsity=0.5, batch_size=4, samples_per_language=1000,
                      sequence_length=len(rows[0]["input_ids"]))
MWandaPruner(config, progress=False, restore_on_failure=False).prune(model, rows)
"""

LLM_COMPRESSOR = """
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import {modifier}
from transformers import AutoTokenizer
loaded, start = begin()
ids = [row["input_ids"] for row in rows]
data = Dataset.from_list([{{"input_ids": each, "attention_mask": [1] * len(each)}} for each in ids])
recipe = {modifier}(sparsity=0.5, mask_structure="0:0", targets=["Linear"], ignore=["re:.*lm_head"])
processor = AutoTokenizer.from_pretrained(tokenizer)  # it is asked for, but has nothing to do
oneshot(model=model, processor=processor, dataset=data, recipe=recipe, max_seq_length=len(ids[0]),
        num_calibration_samples=len(ids), pipeline="sequential")
"""

JOBS = {
    "ours": {
        "wanda": OURS.format(settings='criterion="wanda", group="row"'),
        "sparsegpt": OURS.format(settings='criterion="sparsegpt", calibration="sequential"'),
    },
    "llm-compressor": {
        "wanda": LLM_COMPRESSOR.format(modifier="WandaPruningModifier"),
        "sparsegpt": LLM_COMPRESSOR.format(modifier="SparseGPTModifier"),
    },
}


def run(python: str, words: list[str]) -> dict[str, Any]:
    """Runs a job; what its last line says."""
    done = subprocess.run([python, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def print_table(model: Any, rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Writes the model into `args.folder` and runs all jobs on it, round by round."""
    peers = dict(each.split("=", 1) for each in args.peers)
    if unknown := peers.keys() - JOBS.keys() - published.PEERS.keys():
        known = ", ".join(sorted({*JOBS, *published.PEERS} - {"ours"}))
        raise SystemExit(f"{', '.join(sorted(unknown))} is not known: known are {known}.")
    model.save_pretrained(args.folder / "model")
    (args.folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    words = [str(args.folder / "model"), str(args.folder / "rows.json"), str(args.threads)]
    pythons = {"ours": sys.executable} | {name: peers[name] for name in peers if name in JOBS}
    if len(pythons) > 1:
        _print_whole_jobs(pythons, [*words, str(Path(__file__).parents[1] / "examples" / "sample_model")], args.rounds)
    if codes := {name: peers[name] for name in peers if name in published.PEERS}:
        _print_published(codes, [*words, str(args.rounds)])


def _print_whole_jobs(pythons: dict[str, str], words: list[str], rounds: int) -> None:
    seen: dict[tuple[str, str], list[tuple[float, float]]] = {}
    print(
        "| round | who | method | x bare forward | peak above the model, MB | sparsity |\n|---|---|---|---:|---:|---:|"
    )
    for number in range(rounds):
        for method in ("wanda", "sparsegpt"):
            for name, python in pythons.items():
                found = run(python, ["-c", BEFORE + JOBS[name][method] + AFTER, *words])
                ratio, peak = found["seconds"] / found["forward"], found["peak"] / 1e6
                cells = f"{ratio:.2f} | {peak:.0f} | {found['sparsity']:.3f}"
                print(f"| {number + 1} | {name} | {method} | {cells} |", flush=True)
                seen.setdefault((name, method), []).append((ratio, peak))
    print(
        "\n| method | who | x bare forward, median (spread) | time, x ours | peak, x ours |\n|---|---|---:|---:|---:|"
    )
    medians = {key: [statistics.median(values) for values in zip(*each, strict=True)] for key, each in seen.items()}
    for (name, method), (ratio, peak) in medians.items():
        own_ratio, own_peak = medians["ours", method]
        low, high = (end(ratio for ratio, _ in seen[name, method]) for end in (min, max))
        cells = f"{ratio:.2f} ({low:.2f} to {high:.2f}) | {ratio / own_ratio:.2f} | {peak / own_peak:.2f}"
        print(f"| {method} | {name} | {cells} |", flush=True)


def _print_published(codes: dict[str, str], words: list[str]) -> None:
    print(
        "| published code | sums, x ours | choosing, x ours | both, x ours (spread) | same masks, % | error, x ours |\n"
        "|---|---:|---:|---:|---:|---:|"
    )
    for name, code in codes.items():
        found = run(sys.executable, [published.__file__, name, code, *words])
        low, high = found["spread"]
        cells = f"{found['sums']:.2f} | {found['choice']:.2f} | {found['whole']:.2f} ({low:.2f} to {high:.2f})"
        print(f"| {name} | {cells} | {100 * found['same']:.3f} | {found['error']:.3f} |", flush=True)
