"""Measures the memory that evaluating a model takes above the loaded model, each case in a process of its own.

    python benchmarks/evaluation.py MODEL --test test.jsonl.xz --languages en zh

A case is how many windows of how many tokens are evaluated together (`--windows`), by the dense model alone and by
`compare`, which evaluates it and a pruned model. Memory is what the resident set has at its peak, while models are
evaluated, beside what it has after they are loaded and pruned. All logits of a batch would take what the last column
says, in the type of the model.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from peak_memory import peak_memory
from transformers import AutoModelForCausalLM

from optimum_mwanda import MWandaConfig, MWandaPruner, compare, evaluate_languages
from optimum_mwanda.modeling.pages import trim

CASES = ("dense", "compare")


def measure(case: str, args: argparse.Namespace) -> dict[str, float]:
    """What one process does: it loads, and then measures what evaluating takes."""
    model = load(args.model)
    pruned = load(args.model) if case == "compare" else None
    if pruned is not None:
        config = MWandaConfig(criterion="magnitude", allocation="uniform")
        MWandaPruner(config, progress=False, restore_on_failure=False).prune(pruned)
    rows = load_dataset("json", data_files=args.test, split="train")
    settings = {
        "languages": args.languages,
        "batch_size": args.batch_size,
        "sequence_length": args.sequence_length,
        "tokens_per_language": max(args.tokens, args.batch_size * args.sequence_length),
        "progress": False,
    }
    trim()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    loaded, start = peak_memory(), time.process_time()
    if pruned is None:
        tokens = sum(score.tokens for score in evaluate_languages(model, args.model, rows, **settings).scores.values())
    else:
        report = compare(model, pruned, args.model, rows, **settings).dense
        tokens = 2 * sum(score.tokens for score in report.scores.values())
    seconds, above = time.process_time() - start, peak_memory() - loaded
    logits = args.batch_size * args.sequence_length * model.config.get_text_config().vocab_size * model.dtype.itemsize
    return {"loaded": loaded, "above": above, "logits": logits, "tokens": tokens, "seconds": seconds}


def load(name: str) -> Any:
    """A model of which every page is in memory."""
    model = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.clone())
    return model.eval()


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or repository")
    parser.add_argument("--test", required=True, help="JSON lines with the columns language and text")
    parser.add_argument("--languages", nargs="+", required=True)
    parser.add_argument("--windows", nargs="+", default=["8x512", "16x2048"], metavar="COUNTxTOKENS")
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES)
    parser.add_argument("--tokens", type=int, default=16384, help="most tokens per language, but a batch at least")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.case:
        torch.set_num_threads(args.threads)
        args.batch_size, args.sequence_length = map(int, args.windows[0].split("x"))
        print(json.dumps(measure(args.case, args)))
        return
    print("| windows | models | tokens predicted | processor s | loaded, MB | peak above it, MB | all logits, MB |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for windows in args.windows:
        for case in args.cases:
            own = [sys.executable, __file__, args.model, "--test", args.test, "--languages", *args.languages]
            own += ["--tokens", str(args.tokens), "--threads", str(args.threads), "--windows", windows, "--case", case]
            done = subprocess.run(own, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            cells = [windows.replace("x", " x "), case, f"{found['tokens']:,}", f"{found['seconds']:.0f}"]
            cells += [f"{found[part] / 1e6:,.0f}" for part in ("loaded", "above", "logits")]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
