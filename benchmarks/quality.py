"""What every criterion and allocation costs per language, from one calibration.

    python benchmarks/quality.py --model MODEL --calibration calibration.jsonl.xz --test test.jsonl.xz

The figures are factors on the perplexity of the dense model: the geometric mean over all languages (`mean`), over those
that were calibrated on (`seen`), over those that were not (`unseen`), and the factor of the language that suffers most
(`worst`).
`--tune` leaves the test file alone: every second document of the calibration file is held out and evaluated instead.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_mwanda import MWandaConfig, MWandaPruner, PerplexityComparison, evaluate_languages
from optimum_mwanda.utils import markdown_table

CRITERIA: dict[str, dict[str, Any]] = {
    "magnitude, row": {"criterion": "magnitude", "group": "row"},
    "wanda, row": {"criterion": "wanda", "group": "row"},
    "wanda, matrix": {"criterion": "wanda", "group": "matrix"},
    "ria, row": {"criterion": "ria", "group": "row"},
    "ria, matrix": {"criterion": "ria", "group": "matrix"},
}
for _base, _group in (("wanda", "row"), ("ria", "matrix")):
    for _variance, _weight in (("std", 0.5), ("std", 2.0), ("variance", 0.5), ("relative_variance", 0.5)):
        CRITERIA[f"mwanda on {_base}, {_variance} {_weight:g}"] = {
            "base": _base,
            "group": _group,
            "variance": _variance,
            "variance_weight": _weight,
        }
    for _activation, _exponent in (("positive", 0.5), ("above_rms", 0.5)):
        CRITERIA[f"mwanda on {_base}, {_activation} ^{_exponent:g}"] = {
            "base": _base,
            "group": _group,
            "variance": "none",
            "activation": _activation,
            "activation_exponent": _exponent,
        }
    CRITERIA[f"mwanda on {_base}, std 0.5 and above_rms ^0.5"] = {
        "base": _base,
        "group": _group,
        "variance": "std",
        "variance_weight": 0.5,
        "activation": "above_rms",
        "activation_exponent": 0.5,
    }
ALLOCATIONS: dict[str, dict[str, Any]] = {
    "uniform": {"allocation": "uniform"},
    "owl 0.04": {"allocation": "owl", "allocation_strength": 0.04},
    "owl 0.08": {"allocation": "owl", "allocation_strength": 0.08},
    "cwl shared 0.04": {"allocation": "cwl", "allocation_strength": 0.04, "cwl_direction": "shared"},
    "cwl shared 0.08": {"allocation": "cwl", "allocation_strength": 0.08, "cwl_direction": "shared"},
    "cwl specific 0.04": {"allocation": "cwl", "allocation_strength": 0.04, "cwl_direction": "specific"},
}


def read(path: str) -> Dataset:
    return load_dataset("json", data_files=path, split="train")


def datasets(args: argparse.Namespace) -> tuple[Dataset, Dataset]:
    """Text to calibrate on and text to evaluate on."""
    calibration = read(args.calibration)
    if not args.tune:
        return calibration, read(args.test)
    position: dict[str, int] = {}
    parts: tuple[list[int], list[int]] = ([], [])
    for index, language in enumerate(calibration["language"]):
        position[language] = position.get(language, -1) + 1
        parts[position[language] % 2].append(index)
    return calibration.select(parts[0]), calibration.select(parts[1])


def grid(args: argparse.Namespace) -> Iterator[tuple[str, str, float, MWandaConfig]]:
    """Every wanted combination, plus the defaults of the library."""
    shared = {
        "languages": args.seen,
        "samples_per_language": args.samples,
        "sequence_length": args.sequence_length,
        "seed": args.seed,
    }
    for sparsity in args.sparsities:
        yield "defaults", "", sparsity, MWandaConfig(sparsity=sparsity, **shared)
        for criterion in args.criteria:
            for allocation in args.allocations:
                settings = {"criterion": "mwanda", **CRITERIA[criterion], **ALLOCATIONS[allocation], **shared}
                yield criterion, allocation, sparsity, MWandaConfig(sparsity=sparsity, **settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calibration", required=True, help="JSON lines with `language` and `text`")
    parser.add_argument("--test", help="likewise, held out")
    parser.add_argument("--tune", action="store_true", help="evaluate on held-out documents of the calibration file")
    parser.add_argument("--seen", nargs="+", help="languages to calibrate on (default: all)")
    parser.add_argument("--criteria", nargs="*", default=list(CRITERIA), help="any of: " + "; ".join(CRITERIA))
    parser.add_argument("--allocations", nargs="+", default=["uniform"], help="any of: " + "; ".join(ALLOCATIONS))
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.5, 0.6, 0.7])
    parser.add_argument("--samples", type=int, default=12, help="calibration chunks per language")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--test-tokens", type=int, default=2048, help="evaluated tokens per language")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON lines to append the results to")
    args = parser.parse_args()
    if not args.tune and not args.test:
        parser.error("--test is needed, unless --tune is given")

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    calibration, test = datasets(args)

    def evaluate() -> Any:
        return evaluate_languages(
            model,
            tokenizer,
            test,
            sequence_length=args.sequence_length,
            tokens_per_language=args.test_tokens,
            batch_size=8,
            progress=False,
        )

    runs = list(grid(args))
    configs = [config for *_, config in runs]
    pruner = MWandaPruner(configs[0], progress=False)
    statistics = pruner.calibrate(model, calibration, tokenizer, also_for=configs)
    original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    dense = evaluate()
    rows = []
    for criterion, allocation, sparsity, config in runs:
        model.load_state_dict(original)
        MWandaPruner(config, progress=False).apply(model, statistics)
        comparison = PerplexityComparison(dense, {"pruned": evaluate()}, statistics.languages)
        summary = comparison.summary("pruned")
        factors = ["" if value is None else f"{math.exp(value):.3f}" for value in summary.values()]
        rows.append([criterion, allocation, f"{sparsity:g}", *factors, comparison.worst("pruned")])
        print("\t".join(rows[-1]), flush=True)
        if args.output:
            record = {"config": config.to_dict(), "seed": args.seed, **comparison.to_dict()}
            with args.output.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(record, ensure_ascii=False) + "\n")
    print(
        "\n"
        + markdown_table(["criterion", "allocation", "sparsity", "mean", "seen", "unseen", "worst", "language"], rows)
    )


if __name__ == "__main__":
    main()
