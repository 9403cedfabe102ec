"""Trains LoRA adapters under the masks of a pruned model, and merges them without losing a zero.

    python lora.py --model PRUNED --dataset texts.jsonl --output recovered --rank 16

Without arguments it runs on the sample of this repository.
"""

import argparse
from pathlib import Path

from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from optimum_mwanda import (
    MWandaCallback,
    MWandaConfig,
    MWandaPruner,
    mask_adapters,
    merge_preserving_masks,
    mix_languages,
    save_card,
    sparsity_record,
    verify_sparsity,
)

SAMPLE = Path(__file__).resolve().parents[2] / "examples"


def main(words: list[str] | None = None) -> None:
    """Parses the command line, trains the adapters, merges them, and writes the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default=str(SAMPLE / "sample_model"), help="pruned model; a dense one is pruned first"
    )
    parser.add_argument("--dataset", default=str(SAMPLE / "sample_data" / "calibration.jsonl"), help="JSON lines")
    parser.add_argument("--output", default="recovered", help="folder to write to")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--rank", type=int, default=16)
    args = parser.parse_args(words)

    dataset = load_dataset("json", data_files=args.dataset, split="train")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="float32")
    if sparsity_record(model) is None:
        MWandaPruner(MWandaConfig(sparsity=0.5, sequence_length=args.sequence_length)).prune(model, dataset, tokenizer)

    mix = mix_languages(dataset, model, tokenizer, sequence_length=args.sequence_length)
    adapter = LoraConfig(r=args.rank, use_rslora=True, target_modules="all-linear", task_type="CAUSAL_LM")
    peft_model = get_peft_model(model, adapter)
    mask_adapters(peft_model)
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
    callback.recipe = "lora"
    Trainer(peft_model, training, train_dataset=mix.dataset, callbacks=[callback]).train()

    merged, report = merge_preserving_masks(peft_model)
    print(f"{report.error:.2%} of what the adapters learned was masked away.")
    merged.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    save_card(merged, args.output)
    print(verify_sparsity(args.output))


if __name__ == "__main__":
    main()
