"""Measures what short trainings win back, per language, for docs/training.md.

    python benchmarks/recovery.py --model MODEL --train train.jsonl.xz --calibration calibration.jsonl.xz \
        --test test.jsonl.xz --output FOLDER

A model is pruned by each method, and recovered by each recipe from there on the same number of tokens. FOLDER gets
results.jsonl, a line per run, and recovery.md, a table over the seeds. Runs that are in the file are not repeated.
"""

import argparse
import copy
import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_mwanda import (
    MWandaConfig,
    MWandaPruner,
    PerplexityComparison,
    evaluate_languages,
    recover,
    verify_sparsity,
)
from optimum_mwanda.utils import markdown_table

METHODS = {"wanda": {"preset": "wanda"}, "m-wanda": {}, "m-wanda + swap": {"refinement": "swap"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--train", required=True, help="JSON lines with `language` and `text`")
    parser.add_argument("--calibration", required=True, help="the same, to calibrate on")
    parser.add_argument("--train-rows", type=int, default=40, help="most rows to train on per language")
    parser.add_argument("--test", required=True, help="the same, held out")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--seen", nargs="+", help="languages to calibrate and train on (default: all)")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["wanda", "m-wanda"])
    parser.add_argument("--recipes", nargs="+", default=["masks", "distill", "lora"])
    parser.add_argument("--sparsity", type=float, default=0.6)
    parser.add_argument("--tokens", type=int, default=250_000)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, help="of every recipe (default: its own)")
    parser.add_argument("--mix", default="equal")
    parser.add_argument("--samples", type=int, default=12, help="calibration chunks per language")
    parser.add_argument("--test-tokens", type=int, default=1024, help="evaluated tokens per language")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "results.jsonl"
    runs = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    bench = Bench(args)
    for method in args.methods:
        for seed in args.seeds:
            wanted = [name for name in ["one-shot", *args.recipes] if (method, name, seed) not in map(key, runs)]
            for result in bench.run(method, seed, wanted) if wanted else ():
                runs.append(result)
                with path.open("a") as file:
                    file.write(json.dumps(result) + "\n")
                print(result["method"], result["recipe"], seed, f"{result['mean']:.4f}", flush=True)
    table = to_table(runs)
    (args.output / "recovery.md").write_text(table + "\n", encoding="utf-8")
    print(table)


def key(run: dict[str, Any]) -> tuple[str, str, int]:
    return run["method"], run["recipe"], run["seed"]


def first_rows(rows: Dataset, count: int) -> Dataset:
    """So many rows of each language."""
    seen: Counter[str] = Counter()
    chosen = []
    for index, language in enumerate(rows["language"]):
        seen[language] += 1
        if seen[language] <= count:
            chosen.append(index)
    return rows.select(chosen)


class Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.dense = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
        self.tokenizer = AutoTokenizer.from_pretrained(args.model)
        files = {"train": args.train, "calibration": args.calibration, "test": args.test}
        self.text = {name: load_dataset("json", data_files=file, split="train") for name, file in files.items()}
        if args.seen:
            for name in ("train", "calibration"):
                self.text[name] = self.text[name].filter(lambda row: row["language"] in args.seen)
        self.text["train"] = first_rows(self.text["train"].shuffle(seed=0), args.train_rows)
        self.reference = self.evaluate(self.dense)

    def evaluate(self, model: Any) -> Any:
        return evaluate_languages(
            model,
            self.tokenizer,
            self.text["test"],
            sequence_length=self.args.sequence_length,
            tokens_per_language=self.args.test_tokens,
            progress=False,
        )

    def run(self, method: str, seed: int, recipes: list[str]) -> Any:
        args = self.args
        settings = {
            "sparsity": args.sparsity,
            "samples_per_language": args.samples,
            "sequence_length": args.sequence_length,
            "seed": seed,
        } | METHODS[method]
        preset = settings.pop("preset", "defaults")
        pruned = copy.deepcopy(self.dense)
        config = MWandaConfig.preset(preset, **settings)
        MWandaPruner(config, progress=False).prune(pruned, self.text["calibration"], self.tokenizer)
        before = self.evaluate(pruned)
        for recipe in recipes:
            model, tokens = pruned, 0
            if recipe != "one-shot":
                done = recover(
                    copy.deepcopy(pruned),
                    self.text["train"],
                    self.tokenizer,
                    recipe=recipe,
                    tokens=args.tokens,
                    sequence_length=args.sequence_length,
                    batch_size=args.batch_size,
                    learning_rate=args.learning_rate,
                    mix=args.mix,
                    seed=seed,
                    teacher=copy.deepcopy(self.dense) if recipe == "distill" else None,
                    report=PerplexityComparison(self.reference, {"pruned": before}) if args.mix == "need" else None,
                    progress=False,
                )
                model, tokens = done.model, done.steps * args.batch_size * args.sequence_length
                assert verify_sparsity(model).ok
            yield self.result(method, recipe, seed, tokens, before if recipe == "one-shot" else self.evaluate(model))

    def result(self, method: str, recipe: str, seed: int, tokens: int, report: Any) -> dict[str, Any]:
        seen = sorted(set(self.text["calibration"]["language"]))
        comparison = PerplexityComparison(self.reference, {"model": report}, seen)
        ratios = {language: comparison.log_ratio("model", language) for language in comparison.languages}
        groups = {"mean": list(ratios), "seen": seen, "unseen": [each for each in ratios if each not in seen]}
        values = {name: statistics.fmean(ratios[each] for each in group) for name, group in groups.items() if group}
        found = {"method": method, "recipe": recipe, "seed": seed, "tokens": tokens}
        return {**found, **values, "worst": max(ratios.values()), "languages": ratios}


def to_table(runs: list[dict[str, Any]]) -> str:
    """Increase of the log-perplexity over the dense model, mean over seeds, with the range of the mean."""
    rows = []
    for method, recipe in dict.fromkeys((run["method"], run["recipe"]) for run in runs):
        same = [run for run in runs if (run["method"], run["recipe"]) == (method, recipe)]
        means = [run["mean"] for run in same]
        spread = f" [{min(means):.3f}, {max(means):.3f}]" if len(means) > 1 else ""
        shown = [
            f"{statistics.fmean(run[name] for run in same):.3f}"
            for name in ("seen", "unseen", "worst")
            if name in same[0]
        ]
        rows.append([method, recipe, f"{same[0]['tokens']:,}", f"{statistics.fmean(means):.3f}{spread}", *shown])
    names = ["seen", "unseen", "worst"] if "unseen" in runs[0] else ["seen", "worst"]
    return markdown_table(["method", "recipe", "tokens", "mean", *names], rows)


if __name__ == "__main__":
    main()
