"""Trains a pruned model toward its dense original, and most in the languages that lost most.

    python distillation.py --model PRUNED --dense MODEL --dataset texts.jsonl --held-out held_out.jsonl --output OUT

Without arguments it runs on the sample of this repository.
"""

import argparse
from pathlib import Path

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from optimum_mwanda import (
    DistillationTrainer,
    MWandaCallback,
    MWandaConfig,
    MWandaPruner,
    PerplexityComparison,
    evaluate_languages,
    mix_languages,
    need_weights,
    sparsity_record,
    verify_sparsity,
)

SAMPLE = Path(__file__).resolve().parents[2] / "examples"


def main(words: list[str] | None = None) -> None:
    """Parses the command line, trains, and writes the model with its evaluation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default=str(SAMPLE / "sample_model"), help="pruned model; a dense one is pruned first"
    )
    parser.add_argument("--dense", default=str(SAMPLE / "sample_model"), help="the dense model")
    parser.add_argument("--dataset", default=str(SAMPLE / "sample_data" / "calibration.jsonl"), help="JSON lines")
    parser.add_argument("--held-out", default=str(SAMPLE / "sample_data" / "evaluation.jsonl"), help="JSON lines")
    parser.add_argument("--output", default="recovered", help="folder to write to")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--alpha", type=float, default=0.5, help="weight of the dense model's predictions")
    parser.add_argument("--tokens-per-language", type=int, default=16384, help="most tokens to evaluate")
    args = parser.parse_args(words)

    dataset = load_dataset("json", data_files=args.dataset, split="train")
    held_out = load_dataset("json", data_files=args.held_out, split="train")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    dense = AutoModelForCausalLM.from_pretrained(args.dense)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="float32")
    if sparsity_record(model) is None:
        MWandaPruner(MWandaConfig(sparsity=0.5, sequence_length=args.sequence_length)).prune(model, dataset, tokenizer)

    measured = {"sequence_length": args.sequence_length, "tokens_per_language": args.tokens_per_language}
    original = evaluate_languages(dense, tokenizer, held_out, **measured)
    pruned = evaluate_languages(model, tokenizer, held_out, **measured)
    weights = need_weights(PerplexityComparison(original, {"pruned": pruned}))

    mix = mix_languages(dataset, model, tokenizer, sequence_length=args.sequence_length)
    training = TrainingArguments(
        args.output,
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        save_strategy="no",
        report_to="none",
    )
    callback = MWandaCallback()
    callback.recipe = "distill"
    trainer = DistillationTrainer(
        model,
        training,
        train_dataset=mix.dataset.map(lambda row: {"loss_weight": weights[row["language"]]}),
        callbacks=[callback],
        teacher=dense,
        alpha=args.alpha,
    )
    trainer.train()

    recovered = evaluate_languages(model, tokenizer, held_out, **measured)
    print(PerplexityComparison(original, {"pruned": pruned, "recovered": recovered}).to_markdown())
    callback.report = PerplexityComparison(original, {"recovered": recovered})  # for the card
    trainer.save_model()
    tokenizer.save_pretrained(args.output)
    trainer.create_model_card()
    print(verify_sparsity(args.output))


if __name__ == "__main__":
    main()
