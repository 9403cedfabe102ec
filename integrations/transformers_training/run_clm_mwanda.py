"""Prunes a causal language model, trains it with its zeros kept, evaluates every language, writes a card and pushes it.

    python run_clm_mwanda.py --model_name_or_path MODEL --dataset texts.jsonl --eval_dataset held_out.jsonl \
        --sparsity 0.5 --recipe masks --max_steps 1000 --output_dir recovered --push_to_hub

Without arguments it runs on the sample of this repository. It takes all arguments of `transformers.TrainingArguments`,
and `--config_file FILE` reads arguments from a JSON or YAML file; those on the command line win.
"""

import itertools
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, Trainer, TrainingArguments, set_seed
from transformers.data import default_data_collator

import optimum_mwanda as mwanda
from optimum_mwanda.commands.places import open_dataset
from optimum_mwanda.sharing.folder import save_folder, write_evaluations
from optimum_mwanda.sharing.model_card import describe
from optimum_mwanda.storage.outputs import new_folder
from optimum_mwanda.training.lent_model import lent_to_training

SAMPLE = Path(__file__).resolve().parents[2] / "examples"


@dataclass
class ScriptArguments:
    """What is pruned, how it is trained, and on what."""

    model_name_or_path: str = field(default=str(SAMPLE / "sample_model"), metadata={"help": "Dense model."})
    preset: str | None = field(default=None, metadata={"help": "Preset of MWandaConfig. None: the default settings."})
    sparsity: float = field(default=0.5, metadata={"help": "Share of the weights to prune."})
    recipe: str = field(default="masks", metadata={"help": "How to train.", "choices": ["masks", "distill", "lora"]})
    dataset: list[str] = field(
        default_factory=lambda: [str(SAMPLE / "sample_data" / "calibration.jsonl")],
        metadata={"help": "Text to calibrate and train on: files, or a folder or repository, with a language column."},
    )
    eval_dataset: list[str] = field(
        default_factory=lambda: [str(SAMPLE / "sample_data" / "evaluation.jsonl")], metadata={"help": "Held-out text."}
    )
    languages: list[str] | None = field(default=None, metadata={"help": "Languages of `dataset` to use. None: all."})
    mix: str = field(default="equal", metadata={"help": "Their shares.", "choices": ["equal", "temperature", "need"]})
    sequence_length: int | None = field(default=None, metadata={"help": "Tokens per chunk. None: at most 512."})
    tokens_per_language: int = field(default=16384, metadata={"help": "Most tokens to evaluate per language."})
    lora_rank: int = field(default=16, metadata={"help": "Rank of the adapters, for the recipe lora."})


def main(words: list[str] | None = None) -> None:
    """Does all of it."""
    script, training = parse(sys.argv[1:] if words is None else words)
    set_seed(training.seed)
    pruned = Path(training.output_dir, "_pruned")  # a push leaves out what begins with _
    with open_dataset(script.dataset) as text, open_dataset(script.eval_dataset, split="test") as held_out:
        with training.main_process_first(local=training.save_on_each_node, desc="pruning"):
            if training.should_save and training.resume_from_checkpoint is None:
                with mwanda.work_alone():
                    prune(script, text, held_out, pruned)
        tokenizer = AutoTokenizer.from_pretrained(pruned)
        model = AutoModelForCausalLM.from_pretrained(pruned)
        before = mwanda.PerplexityComparison.from_dict(json.loads((pruned / "evaluation.json").read_bytes()))
        chosen = {"languages": script.languages, "sequence_length": script.sequence_length, "seed": training.seed}
        mix = mwanda.mix_languages(text, model, tokenizer, strategy=script.mix, report=before, **chosen)
        callback = mwanda.MWandaCallback()
        callback.recipe = script.recipe
        with lent_to_training(model, mwanda.read_masks(model)):  # in float32
            data = {"train_dataset": mix.dataset, "data_collator": default_data_collator, "processing_class": tokenizer}
            trainer = make_trainer(script, model, args=training, callbacks=[callback], **data)
            if trainer.is_fsdp_enabled:
                raise ValueError("This script does not share weights out: launch it without FSDP.")
            result = trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
            trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)  # no more bf16
            if script.recipe == "lora":
                trainer.model, _ = mwanda.merge_preserving_masks(trainer.model)
        trainer.save_model()
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
        after = evaluate(script, model, tokenizer, held_out)
    callback.report = mwanda.PerplexityComparison(before.dense, {"recovered": after}, before.seen)
    trainer.save_metrics("eval", {f"eval_{name}_perplexity": score.perplexity for name, score in after.scores.items()})
    if trainer.is_world_process_zero():
        write_evaluations(Path(training.output_dir), callback.report)
        both = {**before.pruned, "recovered": after}
        print(mwanda.PerplexityComparison(before.dense, both, before.seen).to_markdown())
    finish = trainer.push_to_hub if training.push_to_hub else trainer.create_model_card
    finish()


def parse(words: list[str]) -> Any:
    """Arguments of this script and of the `Trainer`."""
    if "--config_file" in words:
        at = words.index("--config_file")
        given = yaml.safe_load(Path(words[at + 1]).read_bytes())  # JSON is YAML as well
        lists = {f"--{name}": value if isinstance(value, list) else [value] for name, value in given.items()}
        flags = [[flag, *map(str, values)] for flag, values in lists.items() if values != [None]]
        words = [*itertools.chain(*flags), *words[:at], *words[at + 2 :]]
    parser = HfArgumentParser([ScriptArguments, TrainingArguments], allow_abbrev=False)
    return parser.parse_args_into_dataclasses(words)


def prune(script: ScriptArguments, text: Any, held_out: Any, folder: Path) -> None:
    """Writes the pruned model, with its evaluation."""
    settings = {"sparsity": script.sparsity, "languages": script.languages, "sequence_length": script.sequence_length}
    config = mwanda.MWandaConfig.preset(script.preset, **settings) if script.preset else mwanda.MWandaConfig(**settings)
    with new_folder(folder) as new:
        tokenizer = AutoTokenizer.from_pretrained(script.model_name_or_path)
        model = AutoModelForCausalLM.from_pretrained(script.model_name_or_path)
        if mwanda.sparsity_record(model) is not None:
            raise ValueError(f"{script.model_name_or_path} is pruned already: give the dense model.")
        dense = evaluate(script, model, tokenizer, held_out)
        mwanda.MWandaPruner(config).prune(model, text, tokenizer)
        reports = {"pruned": evaluate(script, model, tokenizer, held_out)}
        report = mwanda.PerplexityComparison(dense, reports, mwanda.sparsity_record(model).languages or None)
        save_folder(model, new, tokenizer, report=report, card=describe(model, report))


def evaluate(script: ScriptArguments, model: Any, tokenizer: Any, held_out: Any) -> mwanda.PerplexityReport:
    """Perplexity in every language."""
    settings = {"sequence_length": script.sequence_length, "tokens_per_language": script.tokens_per_language}
    return mwanda.evaluate_languages(model, tokenizer, held_out, **settings)


def make_trainer(script: ScriptArguments, model: Any, **arguments: Any) -> Trainer:
    """The `Trainer` of a recipe."""
    if script.recipe == "distill":
        dense = AutoModelForCausalLM.from_pretrained(script.model_name_or_path)
        return mwanda.DistillationTrainer(model, teacher=dense, **arguments)
    if script.recipe == "lora":
        from peft import LoraConfig, get_peft_model

        names = sorted({name.rpartition(".")[2] for name in mwanda.read_masks(model)})
        adapter = LoraConfig(r=script.lora_rank, use_rslora=True, target_modules=names, task_type="CAUSAL_LM")
        model = get_peft_model(model, adapter)
        mwanda.mask_adapters(model)
    return Trainer(model, **arguments)


if __name__ == "__main__":
    main()
