"""Measures what keeping masks costs in a training step, as a ratio to the same step without.

    python benchmarks/training.py MODEL --threads 1

Rounds with and without masks alternate in one run, on the same model and the same batch. On the CPU the time is that of
this process alone, so other work on the machine disturbs it little. The work that masks add, products of gradients and
weights with a mask, is also timed alone: on a noisy machine the difference of two steps says little.
"""

import argparse
import contextlib
import statistics
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from optimum_mwanda import MWandaConfig, MWandaPruner, keep_masks, read_masks
from optimum_mwanda.training.keeper import MaskKeeper


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a dense checkpoint, pruned here by magnitude")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps of a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).to(args.device)
    config = MWandaConfig(sparsity=args.sparsity, criterion="magnitude", allocation="uniform")
    MWandaPruner(config, progress=False).prune(model)
    masks = read_masks(model)  # rounds without them bring the weights back
    ids = torch.randint(model.config.vocab_size, (args.batch_size, args.sequence_length), device=args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    now = time.process_time if args.device == "cpu" else time.perf_counter

    def clock() -> float:
        start = now()
        for _ in range(args.steps):
            model(input_ids=ids, labels=ids).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        if args.device != "cpu":
            torch.cuda.synchronize()
        return now() - start

    def clock_masks(keeper: MaskKeeper) -> float:
        """What one step does besides: masks each gradient, and each matrix after the step."""
        matrices = keeper.matrices.values()
        gradients = [torch.randn_like(matrix.parameter) for matrix in matrices]
        start = now()
        for _ in range(args.steps):
            for matrix, gradient in zip(matrices, gradients, strict=True):
                gradient * matrix.kept()
                matrix.before_step()
                matrix.mask_weights()
        if args.device != "cpu":
            torch.cuda.synchronize()
        return now() - start

    clock()
    bare, kept, alone = [], [], []
    for number in range(2 * args.rounds):
        with keep_masks(model, optimizer, masks) if number % 2 else contextlib.nullcontext() as keeper:
            clock()  # taking the masks is not part of a step
            (kept if number % 2 else bare).append(clock())
            if keeper is not None:
                with torch.no_grad():
                    alone.append(clock_masks(keeper))
    ratios = sorted(with_masks / without for with_masks, without in zip(kept, bare, strict=True))
    print(f"a step of {ids.numel()} tokens without masks: {statistics.median(bare) / args.steps:.3f} s")
    print(f"with masks: {statistics.median(ratios):.3f} times as long ({ratios[0]:.3f} to {ratios[-1]:.3f})")
    shares = sorted(100 * masks_alone / without for masks_alone, without in zip(alone, bare, strict=True))
    print(f"the work of the masks alone: {statistics.median(shares):.2f} % of it ({shares[0]:.2f} to {shares[-1]:.2f})")


if __name__ == "__main__":
    main()
