"""Measures how pruning scales: with processes, and with tokens, languages, width and depth.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py

Prints Markdown: the time at one and at several processes and what of it is waiting and sending; the time of
calibration, masks and OBS updates at three sizes of everything else, with the exponent between the smallest and the
largest; and costs per unit. With `--device cuda` the sizes are measured on a GPU, without the processes.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import distributed
from transformers import LlamaConfig, LlamaForCausalLM

from optimum_mwanda import MWandaConfig, MWandaPruner
from optimum_mwanda.modeling.blocks import find_blocks, inference_mode, run_blocks
from optimum_mwanda.modeling.weights import find_weights, flat
from optimum_mwanda.processes.group import Processes
from optimum_mwanda.utils import markdown_table

METHODS: dict[str, dict[str, Any]] = {"defaults": {}, "obs": {"reconstruction": "obs"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--languages", type=int, default=8)
    parser.add_argument("--samples", type=int, default=4, help="chunks per language")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--factors", type=int, nargs=3, default=[1, 2, 4], help="sizes, as multiples of the above")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--parts", nargs="+", choices=["processes", "sizes"], default=["processes", "sizes"])
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return
    if args.device == "cpu" and "processes" in args.parts:
        print(measure_processes(args), end="\n\n")
    if "sizes" in args.parts:
        print(measure_sizes(args))


def measure_processes(args: argparse.Namespace) -> str:
    """The same pruning in one and in several processes, each with one thread."""
    rows = []
    alone: dict[str, float] = {}
    for size in args.processes:
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
        done = subprocess.run(
            [*start, __file__, "--worker", *sys.argv[1:]],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        for name, found in json.loads(done.stdout).items():
            alone.setdefault(name, found["seconds"])
            shares = [f"{100 * found[part] / found['seconds']:.1f} %" for part in ("waiting", "sending")]
            speed = alone[name] / found["seconds"]
            rows.append([name, size, f"{found['seconds']:.2f}", f"{speed:.2f}", *shares, f"{found['bytes'] / 1e6:.1f}"])
    return markdown_table(["settings", "processes", "s", "speed-up", "waiting", "sending", "MB sent"], rows)


def work(args: argparse.Namespace) -> None:
    """Prunes in this process, one of several; the first one prints the times of the fastest round."""
    size = int(os.environ["WORLD_SIZE"])
    if size > 1:
        distributed.init_process_group("gloo")
    spent: Counter[str] = Counter()
    for name in ("all_reduce", "broadcast", "broadcast_object_list", "all_gather_object"):
        setattr(distributed, name, counted(getattr(distributed, name), "calls", spent))
    Processes._exchange = counted(Processes._exchange, "waiting", spent)  # type: ignore[method-assign]
    found = {}
    for name, settings in METHODS.items():
        rounds = []
        for _ in range(args.rounds):
            model, rows = make(args), make_rows(args)
            if size > 1:
                distributed.barrier()
            spent.clear()
            seconds = clock(partial(pruner(args, **settings).prune, model, rows), args.device)
            sending = spent["calls"] - spent["waiting"]
            rounds.append({"seconds": seconds, **spent, "sending": sending})
        found[name] = {"waiting": 0.0, "bytes": 0, **min(rounds, key=lambda each: each["seconds"])}
    if int(os.environ["RANK"]) == 0:
        print(json.dumps(found))
    if size > 1:
        distributed.destroy_process_group()


def counted(do: Callable[..., Any], name: str, spent: "Counter[str]") -> Callable[..., Any]:
    """Adds up the time that a function takes, and the bytes of the tensor that it is given first."""

    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return do(*args, **kwargs)
        finally:
            spent[name] += time.perf_counter() - start  # type: ignore[assignment]
            spent["bytes"] += args[0].nbytes if torch.is_tensor(args[0]) else 0

    return call


def measure_sizes(args: argparse.Namespace) -> str:
    """Three sizes along each axis; everything else stays at its smallest."""
    columns = ["forward", "calibration", "masks", "obs"]
    rows, points = [], {}
    for axis in ("samples", "languages", "width", "depth"):
        found = []
        for factor in args.factors:
            size = argparse.Namespace(**{**vars(args), axis: getattr(args, axis) * factor})
            if axis == "languages":  # the tokens stay
                size.samples, size.sequence_length = args.samples, max(args.sequence_length // factor, 8)
            key = tuple(sorted(vars(size).items(), key=str).__repr__())
            points.setdefault(key, measure(size))
            found.append(points[key])
            label = {"samples": "tokens"}.get(axis, axis)
            shown = size.languages * size.samples * size.sequence_length if axis == "samples" else getattr(size, axis)
            rows.append([label, f"{shown:,}", *(f"{found[-1][name]:.3f}" for name in columns)])
        span = math.log(args.factors[-1] / args.factors[0])
        slopes = [math.log(found[-1][name] / found[0][name]) / span for name in columns]
        rows.append([label, "exponent", *(f"{slope:.2f}" for slope in slopes)])
    costs = [f"{name}: {value:.3g} {unit}" for name, (value, unit) in unit_costs(args, found[-1]).items()]
    return markdown_table(["axis", "size", *columns], rows) + "\n\n" + "\n".join(f"- {cost}" for cost in costs)


def unit_costs(args: argparse.Namespace, seconds: dict[str, float]) -> dict[str, tuple[float, str]]:
    """Costs at the largest depth, which is measured last."""
    matrices = [weight.matrix.shape for weight in flat(find_weights(find_blocks(make(args))))]
    depth = args.factors[-1]
    weights = depth * sum(rows * columns for rows, columns in matrices)
    products = depth * sum(rows * columns * columns for rows, columns in matrices)
    tokens = args.languages * args.samples * args.sequence_length
    return {
        "forward": (1e12 * seconds["forward"] / (tokens * weights), "ps per token and weight"),
        "calibration": (1e12 * seconds["calibration"] / (tokens * weights), "ps per token and weight"),
        "masks": (1e9 * seconds["masks"] / weights, "ns per weight"),
        "OBS": (1e12 * seconds["solve"] / products, "ps per out · in²"),
    }


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Seconds of the fastest round: a bare forward pass, calibration, masks, and a whole pruning with OBS."""
    rows = make_rows(args)
    rounds = []
    for _ in range(args.rounds):
        model, found = make(args), {}
        blocks = find_blocks(model)
        batches = torch.tensor([row["input_ids"] for row in rows]).split(8)

        def forward(model: Any = model, blocks: Any = blocks, batches: Any = batches) -> None:
            with inference_mode(model):
                for batch in batches:
                    run_blocks(model, blocks, {"input_ids": batch})

        found["forward"] = clock(forward, args.device)
        statistics = pruner(args).calibrate(model, rows)
        found["calibration"] = clock(partial(pruner(args).calibrate, model, rows), args.device)
        found["masks"] = clock(partial(pruner(args).apply, model, statistics), args.device)
        found["obs"] = clock(partial(pruner(args, **METHODS["obs"]).prune, make(args), rows), args.device)
        rounds.append(found)
    best = {name: min(each[name] for each in rounds) for name in rounds[0]}
    # OBS runs a dense calibration, records and replays every block, and then solves.
    return best | {"solve": max(best["obs"] - best["calibration"] - 2 * best["forward"] - best["masks"], 1e-9)}


def pruner(args: argparse.Namespace, **settings: Any) -> MWandaPruner:
    chosen = {"sequence_length": args.sequence_length, "samples_per_language": args.samples, **settings}
    return MWandaPruner(MWandaConfig(**chosen), progress=False, restore_on_failure=False)


def make(args: argparse.Namespace) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=args.width,
        intermediate_size=args.width * 11 // 4,
        num_hidden_layers=args.depth,
        num_attention_heads=args.width // 64,
        num_key_value_heads=max(args.width // 128, 1),
        max_position_embeddings=args.sequence_length,
    )
    return LlamaForCausalLM(config).to(args.device, getattr(torch, args.dtype))


def make_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "language": f"l{language}",
            "input_ids": torch.randint(3, 1024, (args.sequence_length,), generator=generator).tolist(),
        }
        for language in range(args.languages)
        for _ in range(args.samples)
    ]


def clock(work: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
