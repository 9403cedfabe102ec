"""Trains a few blocks of a pruned model at a time (LISA), with its zeros kept, on an equal mix of languages.

    python lisa.py --model PRUNED --dataset texts.jsonl --output recovered --steps 1000 --blocks 2

Prints how much memory weights and the optimizer's moments take, the latter twice as much as the weights if all train.
Without arguments it runs on the sample of this repository.
"""

import argparse
from pathlib import Path

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from optimum_mwanda import LISACallback, MWandaConfig, MWandaPruner, mix_languages, sparsity_record, verify_sparsity

SAMPLE = Path(__file__).resolve().parents[2] / "examples"


def main(words: list[str] | None = None) -> None:
    """Parses the command line, trains, and writes the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default=str(SAMPLE / "sample_model"), help="pruned model; a dense one is pruned first"
    )
    parser.add_argument("--dataset", default=str(SAMPLE / "sample_data" / "calibration.jsonl"), help="JSON lines")
    parser.add_argument("--output", default="recovered", help="folder to write to")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--blocks", type=int, default=2, help="blocks that train at a time")
    parser.add_argument("--interval", type=int, default=20, help="steps for which the same blocks train")
    args = parser.parse_args(words)

    dataset = load_dataset("json", data_files=args.dataset, split="train")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="float32")
    if sparsity_record(model) is None:
        MWandaPruner(MWandaConfig(sparsity=0.5, sequence_length=args.sequence_length)).prune(model, dataset, tokenizer)

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
    callback = LISACallback(args.blocks, args.interval)
    trainer = Trainer(model, training, train_dataset=mix.dataset, callbacks=[callback])
    trainer.train()
    moments = [moment for state in trainer.optimizer.state.values() for moment in state.values() if moment.dim()]
    for what, tensors in (("Weights", model.parameters()), ("Moments", moments)):
        print(f"{what}: {sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6:,.1f} MB")

    trainer.save_model()
    tokenizer.save_pretrained(args.output)
    trainer.create_model_card()
    print(verify_sparsity(args.output))


if __name__ == "__main__":
    main()
