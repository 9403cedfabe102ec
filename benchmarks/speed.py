"""Measures what calibration and pruning cost, compared with a bare forward pass of the blocks over the same tokens.

    python benchmarks/speed.py --hidden 1024

All figures come from one run with alternating rounds, and are ratios: machines are noisy, ratios less so.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from optimum_mwanda import MWandaConfig, MWandaPruner
from optimum_mwanda.modeling.blocks import find_blocks, inference_mode, run_blocks


def clock(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--languages", type=int, default=4)
    parser.add_argument("--samples", type=int, default=4, help="chunks per language")
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=4096,
            hidden_size=args.hidden,
            intermediate_size=args.hidden * 11 // 4,
            num_hidden_layers=args.layers,
            num_attention_heads=args.hidden // 64,
            num_key_value_heads=args.hidden // 128,
            max_position_embeddings=args.sequence_length,
        )
    ).to(args.device, getattr(torch, args.dtype))
    rows = [
        {"language": f"l{language}", "input_ids": torch.randint(4096, (args.sequence_length,)).tolist()}
        for language in range(args.languages)
        for _ in range(args.samples)
    ]

    def config(**changes: object) -> MWandaConfig:
        settings = {"samples_per_language": args.samples, "sequence_length": args.sequence_length, "batch_size": 4}
        return MWandaConfig(**{**settings, **changes})  # type: ignore[arg-type]

    default = MWandaPruner(config(), progress=False)
    active = MWandaPruner(config(activation="above_rms"), progress=False)
    blockwise = {
        "prune, sequential": config(calibration="sequential"),
        "prune, refinement": config(refinement="swap"),
        "prune, reconstruction": config(reconstruction="obs"),
        "prune, sparsegpt": config(criterion="sparsegpt"),
        "prune, alps": config(criterion="alps"),
    }
    blocks = find_blocks(model)
    ids = torch.tensor([row["input_ids"] for row in rows])

    def bare() -> None:
        with inference_mode(model):
            for batch in ids.split(4):
                run_blocks(model, blocks, {"input_ids": batch})

    found = default.calibrate(model, rows)
    dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pieces: dict[str, Callable[[], object]] = {
        "bare forward": bare,
        "calibrate": lambda: default.calibrate(model, rows),
        "calibrate with activation probability": lambda: active.calibrate(model, rows),
        "apply": lambda: default.apply(model, found),
        **{name: partial(MWandaPruner(each, progress=False).prune, model, rows) for name, each in blockwise.items()},
    }
    times: dict[str, list[float]] = {name: [] for name in pieces}
    bare()
    for _ in range(args.rounds):
        for name, work in pieces.items():
            times[name].append(clock(work))
            model.load_state_dict(dense)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters, {ids.numel()} tokens, {args.dtype}")
    for name, seconds in times.items():
        ratios = [own / base for own, base in zip(seconds, times["bare forward"], strict=True)]
        print(
            f"{name:40s} {statistics.median(seconds):7.2f} s   {statistics.median(ratios):5.2f} x bare forward "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
