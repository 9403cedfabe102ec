"""Measures what `calibration_tolerance` saves, and how far its masks agree with those that all the text gives.

    python benchmarks/settling.py --model MODEL --calibration calibration.jsonl.xz

Each row prunes the model anew. `evenly` reads as many chunks of every language, about as many tokens in all as the
tolerance above it. `other rows` reads as much as the first row, but draws other rows from the text; where a language
has no more text than is read, they are the same.
"""

import argparse
import copy
from collections.abc import Sequence
from typing import Any

import torch
from datasets import load_dataset
from torch import Tensor
from transformers import AutoModelForCausalLM

from optimum_mwanda import MWandaConfig, MWandaPruner
from optimum_mwanda.modeling.blocks import find_blocks
from optimum_mwanda.modeling.weights import find_weights, flat
from optimum_mwanda.utils import markdown_table


class Masks:
    """Prunes copies of one model.

    Args:
        args: The command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(args.model)
        self._rows = load_dataset("json", data_files=args.calibration, split="train")
        self._settings = {
            "samples_per_language": args.samples,
            "sequence_length": args.sequence_length,
            "sparsity": args.sparsity,
            "languages": args.languages,
        }

    def prune(self, **settings: Any) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Name of a matrix to where it is zero, and language to tokens."""
        pruner = MWandaPruner(MWandaConfig(**{**self._settings, **settings}), progress=False)
        model = pruner.prune(copy.deepcopy(self._model), self._rows)
        zeros = {weight.name: weight.matrix == 0 for weight in flat(find_weights(find_blocks(model)))}
        return zeros, {entry.language: entry.tokens for entry in pruner.coverage}


def agreement(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Which share of the entries that are zero in one are also zero in the other."""
    both = sum(int((one[name] & other[name]).sum()) for name in one)
    return both / sum(int(zeros.sum()) for zeros in one.values())


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or repository")
    parser.add_argument("--calibration", required=True, help="JSON lines with the columns language and text")
    parser.add_argument("--languages", nargs="+", help="languages to read (default: all)")
    parser.add_argument("--samples", type=int, default=64, help="most chunks per language (default: 64)")
    parser.add_argument("--sequence-length", type=int, default=256, help="tokens per chunk (default: 256)")
    parser.add_argument("--sparsity", type=float, default=0.5, help="share of weights to remove (default: 0.5)")
    parser.add_argument("--tolerances", type=float, nargs="+", default=[0.1, 0.06, 0.04], help="what to try")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    masks = Masks(args)
    everything, full = masks.prune()
    total = sum(full.values())
    rows: list[list[Any]] = []

    def show(name: str, zeros: dict[str, Tensor], tokens: dict[str, int]) -> None:
        counts, read = sorted(tokens.values()), sum(tokens.values())
        found = [f"{counts[0]:,} to {counts[-1]:,}", f"{1 - read / total:.1%}", f"{agreement(everything, zeros):.2%}"]
        rows.append([name, f"{read:,}", *found])

    show("all text", everything, full)
    for tolerance in args.tolerances:
        zeros, tokens = masks.prune(calibration_tolerance=tolerance)
        show(f"tolerance {tolerance:g}", zeros, tokens)
        chunks = max(round(sum(tokens.values()) / len(tokens) / args.sequence_length), 1)
        show(f"evenly, {chunks} chunks", *masks.prune(samples_per_language=chunks))
    show("other rows", *masks.prune(seed=1))
    print(markdown_table(["text", "tokens", "per language", "saved", "zeros in common"], rows))


if __name__ == "__main__":
    main()
