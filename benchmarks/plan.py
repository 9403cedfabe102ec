"""Compares what `plan_pruning` says with what pruning takes, in a process of its own for every model and mode.

    python benchmarks/plan.py FOLDER

Random models are written into FOLDER, one after the other (0.6 GB each, about three times that while it is pruned).
Memory is the peak of the resident set as the operating system counts it (VmHWM), without that of a process that only
imports. Time is that of pruning, without loading the model in memory and without writing the output.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from peak_memory import peak_memory

from optimum_mwanda import MWandaConfig, MWandaPruner, check_saved, plan_pruning, prune_checkpoint

MODES = ("libraries", "plan", "memory", "stream")
LENGTH, SAMPLES, LANGUAGES = 256, 2, 3
SIZES: dict[str, dict[str, Any]] = {"max_position_embeddings": LENGTH, "vocab_size": 32000}
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": (
        "Llama",
        {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 6, "num_attention_heads": 16},
        "float32",
    ),
    "qwen3": (
        "Qwen3",
        {
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 4,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
        },
        "bfloat16",
    ),
    "mixtral": (
        "Mixtral",
        {
            "hidden_size": 1024,
            "intermediate_size": 2048,
            "num_hidden_layers": 4,
            "num_attention_heads": 16,
            "num_local_experts": 4,
        },
        "float32",
    ),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "swap": {"refinement": "swap"},
    "obs": {"reconstruction": "obs"},
    "sparsegpt": {"criterion": "sparsegpt"},
}


def make_model(name: str, folder: Path, **changes: Any) -> None:
    family, sizes, dtype = MODELS[name]
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **sizes, **changes})
    config.tie_word_embeddings = name != "mixtral"
    torch.manual_seed(0)
    getattr(transformers, f"{family}ForCausalLM")(config).to(getattr(torch, dtype)).save_pretrained(folder)


def rows() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(SIZES["vocab_size"], (LANGUAGES, SAMPLES, LENGTH), generator=generator)
    return [{"language": f"l{number}", "input_ids": row.tolist()} for number, each in enumerate(ids) for row in each]


def settings(name: str) -> MWandaConfig:
    return MWandaConfig(samples_per_language=SAMPLES, sequence_length=LENGTH, batch_size=2, **SETTINGS[name])


def work(mode: str, args: argparse.Namespace) -> None:
    """What a process of one mode does; its seconds and its peak are printed as JSON."""
    source, target = args.folder / "dense", args.folder / mode
    shutil.rmtree(target, ignore_errors=True)
    config = settings(args.settings)
    seconds: Any = None
    if mode == "plan":
        print(json.dumps(plan_pruning(source, config, rows()).to_dict()))
        return
    if mode == "memory":
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(source, dtype="auto")
        start = time.perf_counter()
        MWandaPruner(config, progress=False, restore_on_failure=False).prune(model, rows())
        seconds = time.perf_counter() - start
        model.save_pretrained(target)
        check_saved(model, target)
    elif mode == "stream":
        prune, times = MWandaPruner.prune, []

        def timed(*words: Any) -> Any:
            start = time.perf_counter()
            result = prune(*words)
            times.append(time.perf_counter() - start)
            return result

        MWandaPruner.prune = timed  # type: ignore[method-assign]
        prune_checkpoint(source, target, config, rows(), progress=False)
        (seconds,) = times
    print(json.dumps({"seconds": seconds, "peak": peak_memory()}))


def measure(folder: Path, mode: str, settings: str = "default") -> dict[str, Any]:
    """What a process of its own says."""
    words = [sys.executable, __file__, str(folder), "--mode", mode, "--settings", settings]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--settings", default="default", choices=list(SETTINGS))
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.mode:
        work(args.mode, args)
        return
    print("| model | mode | memory, MB | said | x | seconds | said | x |\n|---|---|---:|---:|---:|---:|---:|---:|")
    for name in args.models:
        shutil.rmtree(args.folder / "dense", ignore_errors=True)
        make_model(name, args.folder / "dense")
        found = {}
        for mode in MODES:
            found[mode] = measure(args.folder, mode, args.settings)
        for mode in ("memory", "stream"):
            own, said = found[mode]["peak"] - found["libraries"]["peak"], found["plan"][mode]
            cells = [own / 1e6, said["memory"] / 1e6, said["memory"] / own]
            cells += [found[mode]["seconds"], said["seconds"], said["seconds"] / found[mode]["seconds"]]
            print(f"| {name} | {mode} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
