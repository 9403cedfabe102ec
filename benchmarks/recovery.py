"""Measures what short trainings win back, per language, for docs/training.md.

    python benchmarks/recovery.py --model MODEL --train train.jsonl.xz --calibration calibration.jsonl.xz \
        --test test.jsonl.xz --output FOLDER

A model is pruned by each method, and recovered by each recipe from there on the same number of tokens; `gradual`
starts from the dense model, and prunes it by the method while it trains. FOLDER gets results.jsonl, to which every run
is added when it ends, and recovery.md, a table over the seeds. Runs that are in the file are not repeated, so an
interrupted call goes on where it was; other settings need another folder.
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from optimum_mwanda import (
    GradualPruningCallback,
    MWandaConfig,
    MWandaPruner,
    PerplexityComparison,
    evaluate_languages,
    mix_languages,
    recover,
    sparsity_record,
    verify_sparsity,
)
from optimum_mwanda.experiments.json_lines import append_line, whole_lines
from optimum_mwanda.training.recovery_settings import LEARNING_RATES
from optimum_mwanda.utils import markdown_table

METHODS: dict[str, dict[str, Any]] = {
    "wanda": {"preset": "wanda"},
    "m-wanda": {},
    "m-wanda + swap": {"refinement": "swap"},
}
RECIPES: dict[str, dict[str, Any]] = {
    "masks": {},
    "distill": {"recipe": "distill"},
    "lora": {"recipe": "lora"},
    "lisa": {"recipe": "lisa"},
    "rigl": {"recipe": "rigl"},
    "rigl, alpha 0.3": {"recipe": "rigl", "rigl_alpha": 0.3},
    "gradual": {},
}
SETTINGS = (
    *("model", "train_rows", "seen", "sparsity", "tokens", "sequence_length", "batch_size"),
    *("learning_rate", "mix", "samples", "test_tokens"),
)
"""Arguments that all runs of a file share."""


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--train", required=True, help="JSON lines with `language` and `text`")
    parser.add_argument("--calibration", required=True, help="the same, to calibrate on")
    parser.add_argument("--train-rows", type=int, default=40, help="most rows to train on per language")
    parser.add_argument("--test", required=True, help="the same, held out")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--seen", nargs="+", help="languages to calibrate and train on (default: all)")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["wanda", "m-wanda"])
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--sparsity", type=float, default=0.6)
    parser.add_argument("--tokens", type=int, default=250_000)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, help="of every recipe (default: its own)")
    parser.add_argument("--mix", choices=["equal", "temperature", "need"], default="equal")
    parser.add_argument("--samples", type=int, default=12, help="calibration chunks per language")
    parser.add_argument("--test-tokens", type=int, default=1024, help="evaluated tokens per language")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = parser.parse_args(words)
    if args.mix == "need" and "gradual" in args.recipes:
        parser.error("--mix need looks at what pruning cost, and gradual has not pruned yet: name other --recipes.")
    path = args.output / "results.jsonl"
    runs = [json.loads(line) for line in whole_lines(path)]
    settings = json.loads(json.dumps({name: getattr(args, name) for name in SETTINGS}, default=str))
    if others := {name for run in runs for name in SETTINGS if run.get("settings", {}).get(name) != settings[name]}:
        parser.error(f"{path} was measured with another {', '.join(sorted(others))}: give another --output.")
    args.output.mkdir(parents=True, exist_ok=True)
    bench = Bench(args)
    for seed in args.seeds:
        for method in args.methods:
            done = {run["recipe"] for run in runs if (run["method"], run["seed"]) == (method, seed)}
            for result in bench.run(method, seed, [name for name in ["one-shot", *args.recipes] if name not in done]):
                runs.append({**result, "settings": settings})
                append_line(path, runs[-1])
                (args.output / "recovery.md").write_text(to_table(runs) + "\n", encoding="utf-8")
                print(method, result["recipe"], seed, f"{result['mean']:.4f}", f"{result['seconds']} s", flush=True)
    print(to_table(runs))


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

    @cached_property
    def reference(self) -> Any:
        """The evaluation of the dense model."""
        return self.evaluate(self.dense)

    def evaluate(self, model: Any) -> Any:
        return evaluate_languages(
            model,
            self.tokenizer,
            self.text["test"],
            sequence_length=self.args.sequence_length,
            tokens_per_language=self.args.test_tokens,
            progress=False,
        )

    def run(self, method: str, seed: int, recipes: list[str]) -> Iterator[dict[str, Any]]:
        """Results of a pruning and of recoveries from it."""
        if not recipes:
            return
        config = self.config(method, seed)
        pruned = copy.deepcopy(self.dense)
        if recipes != ["gradual"]:
            MWandaPruner(config, progress=False).prune(pruned, self.text["calibration"], self.tokenizer)
        before = self.evaluate(pruned)
        for recipe in recipes:
            start = time.process_time()  # other work on the machine disturbs it little
            model, steps = self.train(recipe, pruned, config, before, seed)
            seconds = round(time.process_time() - start)
            assert verify_sparsity(model).ok
            found = {"method": method, "recipe": recipe, "seed": seed, "seconds": seconds}
            found["tokens"] = steps * self.args.batch_size * self.args.sequence_length
            found["sparsity"] = sparsity_record(model).achieved_sparsity
            yield {**found, **self.losses(before if recipe == "one-shot" else self.evaluate(model))}

    def config(self, method: str, seed: int) -> MWandaConfig:
        settings = {
            "sparsity": self.args.sparsity,
            "samples_per_language": self.args.samples,
            "sequence_length": self.args.sequence_length,
            "seed": seed,
            **METHODS[method],
        }
        return MWandaConfig.preset(settings.pop("preset", "defaults"), **settings)

    def train(self, recipe: str, pruned: Any, config: MWandaConfig, before: Any, seed: int) -> tuple[Any, int]:
        """A trained copy of the model, and how many steps that took."""
        args = self.args
        if recipe == "one-shot":
            return pruned, 0
        if recipe == "gradual":
            return self.prune_gradually(config, seed)
        recovery = recover(
            copy.deepcopy(pruned),
            self.text["train"],
            self.tokenizer,
            **RECIPES[recipe],
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
        return recovery.model, recovery.steps

    def prune_gradually(self, config: MWandaConfig, seed: int) -> tuple[Any, int]:
        """The same training as that of `recover`, from the dense model on."""
        args, model = self.args, copy.deepcopy(self.dense)
        steps = max(round(args.tokens / (args.batch_size * args.sequence_length)), 1)
        mix = mix_languages(
            self.text["train"],
            model,
            self.tokenizer,
            strategy=args.mix,
            size=steps * args.batch_size,
            sequence_length=args.sequence_length,
            seed=seed,
        )
        with tempfile.TemporaryDirectory() as folder:
            training = TrainingArguments(
                folder,
                max_steps=steps,
                per_device_train_batch_size=args.batch_size,
                learning_rate=args.learning_rate or LEARNING_RATES["masks"],
                lr_scheduler_type="cosine",
                warmup_steps=round(0.05 * steps),
                seed=seed,
                use_cpu=True,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
            )
            callback = GradualPruningCallback(config, self.text["calibration"], self.tokenizer)
            Trainer(model, training, train_dataset=mix.dataset, callbacks=[callback]).train()
        return model, steps

    def losses(self, report: Any) -> dict[str, Any]:
        """Increases of the log-perplexity: of groups of languages, and of each."""
        seen = sorted(set(self.text["calibration"]["language"]))
        comparison = PerplexityComparison(self.reference, {"model": report}, seen)
        ratios = {language: comparison.log_ratio("model", language) for language in comparison.languages}
        groups = {name: value for name, value in comparison.summary("model").items() if value is not None}
        return {**groups, "languages": ratios}


def to_table(runs: list[dict[str, Any]]) -> str:
    """Increase of the log-perplexity over the dense model, mean over seeds, with the range of the mean."""
    rows = []
    order = list(METHODS)
    names = ["one-shot", *RECIPES]
    groups = {(run["method"], run["recipe"]) for run in runs}
    for method, recipe in sorted(groups, key=lambda group: (order.index(group[0]), names.index(group[1]))):
        same = [run for run in runs if (run["method"], run["recipe"]) == (method, recipe)]
        means = [run["mean"] for run in same]
        spread = f" [{min(means):.3f}, {max(means):.3f}]" if len(means) > 1 else ""
        shown = [
            f"{statistics.fmean(run[name] for run in same):.3f}"
            for name in ("seen", "unseen", "worst")
            if name in same[0]
        ]
        counts = [f"{same[0]['tokens']:,}", f"{len(same)}"]
        rows.append([method, recipe, *counts, f"{statistics.fmean(means):.3f}{spread}", *shown])
    columns = ["seen", "unseen", "worst"] if "unseen" in runs[0] else ["seen", "worst"]
    return markdown_table(["method", "recipe", "tokens", "seeds", "mean", *columns], rows)


if __name__ == "__main__":
    main()
