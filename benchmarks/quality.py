"""What every criterion, term and allocation costs per language: the measurements of docs/benchmarks.md.

    python benchmarks/quality.py --model MODEL --calibration calibration.jsonl.xz --test test.jsonl.xz --output FOLDER

Every part writes FOLDER/PART.jsonl, PART.md and pictures; what is in the JSON lines already is not run again.
`--tune` leaves the test file alone: every second document of the calibration file is held out and evaluated instead,
and the files are called tune-PART. `optimum-cli mwanda compare` does the same for a grid of your own.
"""

import argparse
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_mwanda.experiments.grid.halves import halve_documents
from optimum_mwanda.experiments.grid.markdown import to_markdown
from optimum_mwanda.experiments.grid.methods import BEST, GRID_PRESETS, choose
from optimum_mwanda.experiments.grid.pictures import plot_sections
from optimum_mwanda.experiments.grid.plan import ComparisonPlan
from optimum_mwanda.experiments.grid.runner import run_comparison
from optimum_mwanda.experiments.grid.summary import make_sections

FEW = {**GRID_PRESETS["quick"].methods, **choose(BEST, ["defaults + obs"])}
PARTS = {
    "ablation": {"methods": GRID_PRESETS["ablation"].methods},
    "forms": {"methods": GRID_PRESETS["forms"].methods},
    "allocations": {"methods": GRID_PRESETS["allocations"].methods},
    "baselines": {
        "methods": GRID_PRESETS["baselines"].methods,
        "sparsities": GRID_PRESETS["full"].sparsities,
        "patterns": GRID_PRESETS["full"].patterns,
    },
    "english": {"methods": FEW, "only": ["en"]},
    "rotation": {"methods": FEW, "rotate": 5, "languages": None},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calibration", required=True, help="JSON lines with `language` and `text`")
    parser.add_argument("--test", help="likewise, held out")
    parser.add_argument("--tune", action="store_true", help="evaluate on held-out documents of the calibration file")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="(default: all)")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="some of the methods of a single part")
    parser.add_argument("--seen", nargs="+", help="languages to calibrate on, but in the rotation (default: all)")
    parser.add_argument("--sparsities", nargs="+", type=float, help="instead of those of the parts")
    parser.add_argument("--patterns", nargs="*", help="instead of those of the parts")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--samples", type=int, default=ComparisonPlan.samples_per_language, help="calibration chunks per language"
    )
    parser.add_argument("--sequence-length", type=int, default=ComparisonPlan.sequence_length)
    parser.add_argument(
        "--test-tokens", type=int, default=ComparisonPlan.tokens_per_language, help="evaluated tokens per language"
    )
    args = parser.parse_args()
    if args.tune is (args.test is not None):
        parser.error("give one of --test and --tune")

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    calibration, test = load_dataset("json", data_files=args.calibration, split="train"), None
    if args.tune:
        calibration, test = halve_documents(calibration)
    else:
        test = load_dataset("json", data_files=args.test, split="train")
    for part in args.parts:
        settings = {
            "languages": args.seen,
            "seeds": args.seeds,
            "samples_per_language": args.samples,
            "sequence_length": args.sequence_length,
            "tokens_per_language": args.test_tokens,
            **PARTS[part],
        }
        if args.methods:
            settings["methods"] = choose(settings["methods"], args.methods)
        if args.sparsities is not None:
            settings["sparsities"] = args.sparsities
        if args.patterns is not None:
            settings["patterns"] = args.patterns
        name = f"tune-{part}" if args.tune else part
        results = run_comparison(
            model, calibration, test, args.output / f"{name}.jsonl", ComparisonPlan(**settings), tokenizer
        )
        sections = make_sections(results)
        (args.output / f"{name}.md").write_text(to_markdown(sections), encoding="utf-8")
        plot_sections(sections, args.output / name)
        print(f"{args.output / name}.md")


if __name__ == "__main__":
    main()
