"""Measures what every criterion, term and allocation costs per language, for docs/benchmarks.md.

    python benchmarks/quality.py --model MODEL --calibration calibration.jsonl.xz --test test.jsonl.xz --output FOLDER

Every part writes FOLDER/PART.jsonl, PART.md and pictures; runs that are already in the JSON lines are not repeated.
With several models each gets a folder of its own in FOLDER, named as the model's folder is, and FOLDER/PART.md compares
them. With --joint nothing is run: the table is made of existing folders, whose models may have had other languages.
`--tune` leaves the test file alone: every second document of the calibration file is held out and evaluated instead,
and the files are called tune-PART. `optimum-cli mwanda compare` does the same for your own grid.
"""

import argparse
import json
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_mwanda.commands.models import default_device_map
from optimum_mwanda.experiments.grid.halves import halve_documents
from optimum_mwanda.experiments.grid.markdown import model_tables, to_markdown
from optimum_mwanda.experiments.grid.methods import BEST, GRID_PRESETS, choose
from optimum_mwanda.experiments.grid.pictures import plot_sections
from optimum_mwanda.experiments.grid.plan import ComparisonPlan
from optimum_mwanda.experiments.grid.runner import run_comparison
from optimum_mwanda.experiments.grid.runs import read_results
from optimum_mwanda.experiments.grid.summary import make_sections

FEW = {**GRID_PRESETS["quick"].methods, **choose(BEST, ["m-wanda on ria", "m-wanda on ria + obs"])}
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
    parser.add_argument("--model", nargs="+", type=Path, default=[])
    parser.add_argument("--joint", nargs="+", type=Path, default=[], metavar="FOLDER", help="results to compare")
    parser.add_argument("--calibration", help="JSON lines with `language` and `text`")
    parser.add_argument("--test", help="held-out text in the same form")
    parser.add_argument("--tune", action="store_true", help="evaluate on held-out documents of the calibration file")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="(default: all)")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="which methods to run, with a single part")
    parser.add_argument("--seen", nargs="+", help="languages to calibrate on, except in the rotation (default: all)")
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
    parser.add_argument(
        "--settings", type=json.loads, default={}, help='of every method, {"bos": "none"} for example (default: none)'
    )
    args = parser.parse_args()
    folders = list(args.joint)
    if args.model:
        if args.calibration is None or args.tune is (args.test is not None):
            parser.error("give --calibration, and one of --test and --tune")
        folders += [args.output if len(args.model) == 1 else args.output / path.name for path in args.model]
        for path, folder in zip(args.model, folders[len(args.joint) :], strict=True):
            measure(path, folder, args)
    if len(folders) > 1:
        compare_models(folders, args)


def compare_models(folders: list[Path], args: argparse.Namespace) -> None:
    """Writes one table per part of what several models gave."""
    for name in names_of(args):
        found = {folder.name: read_results(folder / f"{name}.jsonl") for folder in folders}
        sections = {model: make_sections(results) for model, results in found.items() if results is not None}
        if sections:
            (args.output / f"{name}.md").write_text(model_tables(sections), encoding="utf-8")
            print(args.output / f"{name}.md")


def names_of(args: argparse.Namespace) -> list[str]:
    """Names of the files of all parts."""
    return [f"tune-{part}" if args.tune else part for part in args.parts]


def measure(path: Path, folder: Path, args: argparse.Namespace) -> None:
    """Runs all parts on one model."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, device_map=default_device_map())
    tokenizer = AutoTokenizer.from_pretrained(path)
    calibration, test = load_dataset("json", data_files=args.calibration, split="train"), None
    if args.tune:
        calibration, test = halve_documents(calibration)
    else:
        test = load_dataset("json", data_files=args.test, split="train")
    folder.mkdir(parents=True, exist_ok=True)
    for part, name in zip(args.parts, names_of(args), strict=True):
        settings = {
            "languages": args.seen,
            "seeds": args.seeds,
            "samples_per_language": args.samples,
            "sequence_length": args.sequence_length,
            "tokens_per_language": args.test_tokens,
            "settings": args.settings,
            **PARTS[part],
        }
        if args.methods:
            settings["methods"] = choose(settings["methods"], args.methods)
        if args.sparsities is not None:
            settings["sparsities"] = args.sparsities
        if args.patterns is not None:
            settings["patterns"] = args.patterns
        results = run_comparison(
            model, calibration, test, folder / f"{name}.jsonl", ComparisonPlan(**settings), tokenizer
        )
        sections = make_sections(results)
        (folder / f"{name}.md").write_text(to_markdown(sections), encoding="utf-8")
        plot_sections(sections, folder / name)
        print(folder / f"{name}.md")


if __name__ == "__main__":
    main()
