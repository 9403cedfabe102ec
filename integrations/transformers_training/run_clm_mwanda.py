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
from optimum_mwanda.training.distillation_trainer import weigh_by_need
from optimum_mwanda.training.lent_model import lent_to_training
from optimum_mwanda.training.recovery_settings import check_recipe

SAMPLE = Path(__file__).resolve().parents[2] / "examples"


@dataclass
class ScriptArguments:
    """What is pruned, and on what it is calibrated, trained and evaluated."""

    model_name_or_path: str = field(default=str(SAMPLE / "sample_model"), metadata={"help": "Dense model."})
    preset: str | None = field(default=None, metadata={"help": "Preset of MWandaConfig. None: the default settings."})
    sparsity: float = field(default=0.5, metadata={"help": "Share of the weights to prune."})
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


@dataclass
class RecipeArguments:
    """How it is trained. A setting of one recipe is refused with another."""

    recipe: str = field(
        default="masks",
        metadata={"help": "How to train.", "choices": ["masks", "distill", "rigl", "lisa", "lora", "gradual"]},
    )
    distillation_weight: float | None = field(
        default=None, metadata={"help": "For distill: weight of the dense model's predictions. None: 0.5."}
    )
    rigl_alpha: float | None = field(default=None, metadata={"help": "For rigl: as in RigLCallback."})
    rigl_interval: int | None = field(default=None, metadata={"help": "For rigl: steps between two exchanges."})
    lisa_blocks: int | None = field(default=None, metadata={"help": "For lisa: blocks to train at a time. None: 2."})
    lisa_interval: int | None = field(default=None, metadata={"help": "For lisa: steps with these blocks. None: 20."})
    lora_rank: int | None = field(default=None, metadata={"help": "For lora: rank of the adapters. None: 16."})
    gradual_interval: int | None = field(default=None, metadata={"help": "For gradual: steps between two prunings."})
    gradual_stop: float | None = field(
        default=None, metadata={"help": "For gradual: share of the training after which all is pruned. None: 0.5."}
    )

    def __post_init__(self) -> None:
        check_recipe(self.recipe, [name for name, value in vars(self).items() if value is not None])

    def settings(self, **names: str) -> dict[str, Any]:
        """Those of the named settings that were given, under the names that they have elsewhere."""
        return {there: getattr(self, here) for here, there in names.items() if getattr(self, here) is not None}


def main(words: list[str] | None = None) -> None:
    """Does all of it."""
    script, recipe, training = parse(sys.argv[1:] if words is None else words)
    set_seed(training.seed)
    tokenizer = AutoTokenizer.from_pretrained(script.model_name_or_path)
    with open_dataset(script.dataset) as text, open_dataset(script.eval_dataset, split="test") as held_out:
        callback = make_callback(script, recipe, training, text, tokenizer)
        # A push leaves out what begins with _.
        start = Path(training.output_dir, "_dense" if recipe.recipe == "gradual" else "_pruned")
        with training.main_process_first(local=training.save_on_each_node, desc="pruning"):
            if training.should_save and training.resume_from_checkpoint is None:
                with mwanda.work_alone():
                    prepare(script, recipe, text, held_out, tokenizer, start)
        before = mwanda.PerplexityComparison.from_dict(json.loads((start / "evaluation.json").read_bytes()))
        model = AutoModelForCausalLM.from_pretrained(start if before.pruned else script.model_name_or_path)
        chosen = {"languages": script.languages, "sequence_length": script.sequence_length, "seed": training.seed}
        mix = mwanda.mix_languages(text, model, tokenizer, strategy=script.mix, report=before, **chosen)
        data = {"train_dataset": mix.dataset, "data_collator": default_data_collator, "processing_class": tokenizer}
        if recipe.recipe == "distill" and script.mix == "need":
            data["train_dataset"] = weigh_by_need(mix, before)
        if training.eval_strategy != "no":
            data["eval_dataset"] = mwanda.held_out_chunks(held_out, model, tokenizer, **evaluated(script))
        masks = mwanda.read_masks(model) if before.pruned else {}
        with lent_to_training(model, masks):  # in float32
            trainer = make_trainer(script, recipe, model, args=training, callbacks=[callback], **data)
            if trainer.is_fsdp_enabled:
                raise ValueError("This script does not share weights out: launch it without FSDP.")
            result = trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
            trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)  # no more bf16
            if recipe.recipe == "lora":
                trainer.model, _ = mwanda.merge_preserving_masks(trainer.model)
            elif recipe.recipe in ("rigl", "gradual"):
                masks.update(mwanda.read_masks(model))
        trainer.save_model()
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
        after = mwanda.evaluate_languages(model, tokenizer, held_out, **evaluated(script))
    both = mwanda.PerplexityComparison(before.dense, {**before.pruned, "recovered": after}, seen_by(model))
    callback.report = mwanda.PerplexityComparison(before.dense, {"recovered": after}, both.seen)
    trainer.save_metrics("eval", {f"eval_{name}_perplexity": score.perplexity for name, score in after.scores.items()})
    if trainer.is_world_process_zero():
        write_evaluations(Path(training.output_dir), callback.report)
        print(both.to_markdown())
    finish = trainer.push_to_hub if training.push_to_hub else trainer.create_model_card
    finish()


def parse(words: list[str]) -> Any:
    """Arguments of this script, of its recipes and of the `Trainer`."""
    if "--config_file" in words:
        at = words.index("--config_file")
        given = yaml.safe_load(Path(words[at + 1]).read_bytes())  # JSON is YAML as well
        lists = {f"--{name}": value if isinstance(value, list) else [value] for name, value in given.items()}
        flags = [[flag, *map(str, values)] for flag, values in lists.items() if values != [None]]
        words = [*itertools.chain(*flags), *words[:at], *words[at + 2 :]]
    parser = HfArgumentParser([ScriptArguments, RecipeArguments, TrainingArguments], allow_abbrev=False)
    script, recipe, training = parser.parse_args_into_dataclasses(words)
    if recipe.recipe == "gradual" and script.mix == "need":
        raise ValueError(
            "--mix need looks at what pruning cost, and --recipe gradual has not pruned yet: choose another."
        )
    if training.load_best_model_at_end and training.metric_for_best_model in ("loss", "eval_loss"):
        raise ValueError("Every language has a loss of its own: name one, as in --metric_for_best_model eval_sw_loss.")
    return script, recipe, training


def make_config(script: ScriptArguments) -> mwanda.MWandaConfig:
    """How to prune."""
    settings = {"sparsity": script.sparsity, "languages": script.languages, "sequence_length": script.sequence_length}
    return mwanda.MWandaConfig.preset(script.preset, **settings) if script.preset else mwanda.MWandaConfig(**settings)


def evaluated(script: ScriptArguments) -> dict[str, Any]:
    """How much held-out text to read at a time, and in all."""
    return {"sequence_length": script.sequence_length, "tokens_per_language": script.tokens_per_language}


def seen_by(model: Any) -> Any:
    """The languages of the calibration; None if the pruning needed no text."""
    return mwanda.sparsity_record(model).languages or None


def prepare(
    script: ScriptArguments, recipe: RecipeArguments, text: Any, held_out: Any, tokenizer: Any, folder: Path
) -> None:
    """Writes the pruned model with its evaluation; only the evaluation if training prunes it."""
    with new_folder(folder) as new:
        model = AutoModelForCausalLM.from_pretrained(script.model_name_or_path)
        if mwanda.sparsity_record(model) is not None:
            raise ValueError(f"{script.model_name_or_path} is pruned already: give the dense model.")
        dense = mwanda.evaluate_languages(model, tokenizer, held_out, **evaluated(script))
        if recipe.recipe == "gradual":
            write_evaluations(new, mwanda.PerplexityComparison(dense, {}))
            return
        mwanda.MWandaPruner(make_config(script)).prune(model, text, tokenizer)
        reports = {"pruned": mwanda.evaluate_languages(model, tokenizer, held_out, **evaluated(script))}
        report = mwanda.PerplexityComparison(dense, reports, seen_by(model))
        save_folder(model, new, tokenizer, report=report, card=describe(model, report))


def make_callback(
    script: ScriptArguments, recipe: RecipeArguments, training: TrainingArguments, text: Any, tokenizer: Any
) -> mwanda.MWandaCallback:
    """Keeps the masks, and does what a recipe does besides."""
    if recipe.recipe == "rigl":
        return mwanda.RigLCallback(**recipe.settings(rigl_alpha="alpha", rigl_interval="interval"))
    if recipe.recipe == "lisa":
        settings = recipe.settings(lisa_blocks="count", lisa_interval="interval")
        return mwanda.LISACallback(seed=training.seed, **settings)
    if recipe.recipe == "gradual":
        settings = recipe.settings(gradual_interval="interval", gradual_stop="stop")
        return mwanda.GradualPruningCallback(make_config(script), text, tokenizer, **settings)
    callback = mwanda.MWandaCallback()
    callback.recipe = recipe.recipe
    return callback


def make_trainer(script: ScriptArguments, recipe: RecipeArguments, model: Any, **arguments: Any) -> Trainer:
    """The `Trainer` of a recipe."""
    if recipe.recipe == "distill":
        dense = AutoModelForCausalLM.from_pretrained(script.model_name_or_path)
        return mwanda.DistillationTrainer(
            model, teacher=dense, **recipe.settings(distillation_weight="alpha"), **arguments
        )
    if recipe.recipe == "lora":
        from peft import LoraConfig, get_peft_model

        names = sorted({name.rpartition(".")[2] for name in mwanda.read_masks(model)})
        rank = {"r": 16, **recipe.settings(lora_rank="r")}
        model = get_peft_model(model, LoraConfig(use_rslora=True, target_modules=names, task_type="CAUSAL_LM", **rank))
        mwanda.mask_adapters(model)
    return Trainer(model, **arguments)


if __name__ == "__main__":
    main()
