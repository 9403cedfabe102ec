"""Which quantization tools keep the zeros of a pruned model? Runs those that are installed, and writes a table.

    python integrations/quantization/zeros_kept.py --output zeros_kept.md

Without arguments it prunes the sample model and measures on the sample sentences. README.md beside this file explains
the columns.
"""

import argparse
import importlib.metadata
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from schemes import SCHEMES
from source import Scheme, Source
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_mwanda import MWandaConfig, MWandaPruner, PerplexityComparison, evaluate_languages, read_masks
from optimum_mwanda.utils import markdown_table

EXAMPLES = Path(__file__).parents[2] / "examples"
HEADER = ["tool", "scheme", "zeros kept", "bits per weight", "mean factor", "worst factor", "worst language"]


def main() -> None:
    """Parses the command line, measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a pruned checkpoint (default: the sample model, pruned here)")
    parser.add_argument("--sparsity", type=float, default=0.5, help="of the sample model (default: %(default)s)")
    parser.add_argument("--calibration", default=str(EXAMPLES / "sample_data" / "calibration.jsonl"))
    parser.add_argument("--evaluation", default=str(EXAMPLES / "sample_data" / "evaluation.jsonl"))
    parser.add_argument("--texts", type=int, default=56, help="calibration texts for GPTQ (default: %(default)s)")
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--tools", nargs="+", choices=sorted({each.tool for each in SCHEMES}), help="default: all")
    parser.add_argument("--output", type=Path, help="Markdown file (default: only print)")
    args = parser.parse_args()

    torch.manual_seed(0)
    calibration = load_dataset("json", data_files=args.calibration, split="train")
    evaluation = load_dataset("json", data_files=args.evaluation, split="train")
    schemes = [each for each in SCHEMES if args.tools is None or each.tool in args.tools]
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.model or prune_sample(Path(scratch) / "pruned", calibration, args)
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        texts = calibration["text"][: args.texts]
        source = Source(folder, linear_masks(model), tokenizer, texts, Path(scratch))
        table = measure(source, model, schemes, evaluation, args.sequence_length)
    print(table)
    if args.output is not None:
        args.output.write_text(table + "\n", encoding="utf-8")


def prune_sample(folder: Path, calibration: Any, args: argparse.Namespace) -> Path:
    """Prunes the sample model into a folder with the default settings."""
    model = AutoModelForCausalLM.from_pretrained(EXAMPLES / "sample_model")
    tokenizer = AutoTokenizer.from_pretrained(EXAMPLES / "sample_model")
    config = MWandaConfig(sparsity=args.sparsity, sequence_length=args.sequence_length)
    MWandaPruner(config, progress=False).prune(model, calibration, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def linear_masks(model: nn.Module) -> dict[str, torch.Tensor]:
    """The masks of a pruned model, all of whose pruned matrices must be those of linear layers.

    Raises:
        ValueError: If there is no record, or another kind of matrix is pruned.
    """
    masks = read_masks(model)
    modules = dict(model.named_modules())
    if other := sorted(name for name in masks if not isinstance(modules.get(name), nn.Linear)):
        raise ValueError(f"{other[0]!r} is pruned but is not an nn.Linear, which is all that the tools quantize.")
    return masks


def measure(source: Source, model: Any, schemes: Sequence[Scheme], evaluation: Any, sequence_length: int) -> str:
    """The table of all schemes that could run, and a line for each tool or scheme that could not."""

    def evaluate(quantized: Any) -> Any:
        return evaluate_languages(
            quantized, source.tokenizer, evaluation, sequence_length=sequence_length, progress=False
        )

    before = evaluate(model)
    zeros, bits = read(model, source, Scheme("", "", (), source.load))
    rows = [["none", f"pruned, {model.dtype}".replace("torch.", ""), zeros, bits, "1.0000", "1.0000", ""]]
    missing, failed, versions = {}, {}, {"torch": "", "transformers": ""}
    for scheme in schemes:
        label = f"{scheme.tool}, {scheme.name}"
        try:
            found = {package: importlib.metadata.version(package) for package in scheme.packages}
        except importlib.metadata.PackageNotFoundError as error:
            missing[scheme.tool] = str(error.name)
            continue
        print(f"{label} ...", flush=True)
        try:
            quantized = scheme.quantize(source)
            zeros, bits = read(quantized, source, scheme)
            comparison = PerplexityComparison(before, {label: evaluate(quantized)})
        except Exception as error:  # any tool may fail in its own way, and the others shall still run
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            failed[label] = f"{type(error).__name__}: {lines[0] if lines else ''}"
            continue
        versions |= found
        summary = comparison.summary(label)
        factors = [f"{math.exp(summary[kind] or 0):.4f}" for kind in ("mean", "worst")]
        rows.append([scheme.tool, scheme.name, zeros, bits, *factors, comparison.worst(label)])
    versions = {package: importlib.metadata.version(package) for package in versions}
    notes = ["Versions: " + ", ".join(f"{package} {version}" for package, version in versions.items()) + "."]
    notes += [f"Not installed: {tool} (needs {package})." for tool, package in missing.items()]
    notes += [f"Failed: {label}: `{words}`" for label, words in failed.items()]
    return markdown_table(HEADER, rows) + "\n\n" + "\n".join(f"- {note}" for note in notes)


def read(model: Any, source: Source, scheme: Scheme) -> tuple[str, str]:
    """The share of pruned positions that are exactly zero, and the bits per weight of the pruned matrices."""
    pruned = kept = stored = values = 0
    for name, mask in source.masks.items():
        matrix = scheme.dequantize(model, name, mask.shape[1])
        pruned += int(mask.sum())
        kept += int((matrix[mask] == 0).sum())
        stored += scheme.stored(model, name)
        values += mask.numel()
    return f"{100 * kept / pruned:.2f} %", f"{8 * stored / values:.2f}"


if __name__ == "__main__":
    main()
