"""Prunes a dense model while it trains, more and more (gradual pruning), on an equal mix of languages.

    python gradual.py --model MODEL --dataset texts.jsonl --output pruned --steps 2000 --sparsity 0.6

Without arguments it runs on the sample of this repository.
"""

import argparse
from pathlib import Path

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from optimum_mwanda import GradualPruningCallback, MWandaConfig, mix_languages, verify_sparsity

SAMPLE = Path(__file__).resolve().parents[2] / "examples"


def main(words: list[str] | None = None) -> None:
    """Parses the command line, trains, and writes the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default=str(SAMPLE / "sample_model"), help="dense model, or one pruned to a lower sparsity"
    )
    parser.add_argument("--dataset", default=str(SAMPLE / "sample_data" / "calibration.jsonl"), help="JSON lines")
    parser.add_argument("--output", default="pruned", help="folder to write to")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--sparsity", type=float, default=0.5, help="share of the weights to prune")
    parser.add_argument("--interval", type=int, help="steps between two prunings")
    parser.add_argument("--stop", type=float, default=0.5, help="share of the training after which all is pruned")
    args = parser.parse_args(words)

    dataset = load_dataset("json", data_files=args.dataset, split="train")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="float32")

    mix = mix_languages(dataset, model, tokenizer, strategy="equal", sequence_length=args.sequence_length)
    print(mix)
    training = TrainingArguments(
        args.output,
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        save_strategy="no",
        report_to="none",
    )
    config = MWandaConfig(sparsity=args.sparsity, sequence_length=args.sequence_length)
    callback = GradualPruningCallback(config, dataset, tokenizer, interval=args.interval, stop=args.stop)
    trainer = Trainer(model, training, train_dataset=mix.dataset, callbacks=[callback])
    trainer.train()

    trainer.save_model()
    tokenizer.save_pretrained(args.output)
    trainer.create_model_card()
    print(verify_sparsity(args.output))


if __name__ == "__main__":
    main()
