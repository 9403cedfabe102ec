"""Prunes a multilingual model with Wanda and with M-Wanda, and shows what each costs per language.

Without arguments it works offline, on the tiny model and the parallel sentences of this folder:

    python examples/01_prune_sample.py

It also takes any causal language model, and any JSON lines with `language` and `text`.
"""

import argparse
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_mwanda import (
    MWandaConfig,
    MWandaPruner,
    PerplexityComparison,
    check_saved,
    evaluate_languages,
    save_card,
    verify_sparsity,
)

HERE = Path(__file__).parent
# Portuguese, Ukrainian and Vietnamese are evaluated, but the pruner never sees them.
CALIBRATED = "de en es fr hi ja ko ru ta tr zh"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(HERE / "sample_model"))
    parser.add_argument("--calibration", default=str(HERE / "sample_data" / "calibration.jsonl"))
    parser.add_argument("--evaluation", default=str(HERE / "sample_data" / "evaluation.jsonl"))
    parser.add_argument("--languages", nargs="+", default=CALIBRATED.split(), help="languages to calibrate on")
    parser.add_argument("--sparsity", type=float, default=0.6)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--output", type=Path, default=Path("pruned_sample"), help="folder for the pruned checkpoint")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    calibration = load_dataset("json", data_files=args.calibration, split="train")
    evaluation = load_dataset("json", data_files=args.evaluation, split="train")

    mwanda = MWandaConfig(sparsity=args.sparsity, languages=tuple(args.languages), sequence_length=args.sequence_length)
    wanda = mwanda.replace(criterion="wanda", group="row", allocation="uniform")

    def load() -> torch.nn.Module:
        return AutoModelForCausalLM.from_pretrained(args.model)

    def evaluate(model: torch.nn.Module) -> object:
        return evaluate_languages(model, tokenizer, evaluation, sequence_length=args.sequence_length, progress=False)

    # One calibration of the dense model serves both.
    model = load()
    statistics = MWandaPruner(mwanda).calibrate(model, calibration, tokenizer)
    print(f"\nCalibrated on:\n{statistics}\n")
    dense = evaluate(model)

    reports = {}
    for name, config in {"Wanda": wanda, "M-Wanda": mwanda}.items():
        pruner = MWandaPruner(config)
        model = load()
        if config is mwanda:
            print(f"\nThe sparsity of each block:\n{pruner.allocate(model, statistics)}\n")
        pruner.apply(model, statistics)
        reports[name] = evaluate(model)

    comparison = PerplexityComparison(dense, reports, seen=statistics.languages)
    print(f"\nPerplexity at {args.sparsity:.0%} sparsity, and its factor over dense:\n{comparison.to_markdown()}\n")

    # `model` is the one that M-Wanda pruned. It is saved as an ordinary checkpoint, which every tool can read.
    model.save_pretrained(args.output)
    check_saved(model, args.output)  # reads the files back and compares every weight
    tokenizer.save_pretrained(args.output)
    save_card(model, args.output, report=PerplexityComparison(dense, {"M-Wanda": reports["M-Wanda"]}))
    print(verify_sparsity(args.output))
    pruned = AutoModelForCausalLM.from_pretrained(args.output)
    prompt = tokenizer("The function returns", return_tensors="pt")
    text = tokenizer.decode(pruned.generate(**prompt, max_new_tokens=16, do_sample=False)[0], skip_special_tokens=True)
    print(f"Wrote {args.output} and its model card. Loaded again with plain transformers, it continues: {text!r}")


if __name__ == "__main__":
    main()
