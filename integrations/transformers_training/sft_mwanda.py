"""Fine-tunes a pruned model with TRL's `SFTTrainer`, on texts or on conversations, with its zeros kept.

    python sft_mwanda.py --model PRUNED --dataset conversations.jsonl --column messages --output tuned

Without arguments it runs on the sample of this repository. A conversation is a list of messages with `role` and
`content`, and the tokenizer of the model needs a chat template for it.
"""

import argparse
from pathlib import Path

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from optimum_mwanda import MWandaCallback, MWandaConfig, MWandaPruner, mix_languages, sparsity_record, verify_sparsity

SAMPLE = Path(__file__).resolve().parents[2] / "examples"


def main(words: list[str] | None = None) -> None:
    """Parses the command line, trains, and writes the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default=str(SAMPLE / "sample_model"), help="pruned model; a dense one is pruned first"
    )
    parser.add_argument("--dataset", default=str(SAMPLE / "sample_data" / "calibration.jsonl"), help="JSON lines")
    parser.add_argument("--column", default="text", help="column with texts, or messages for conversations")
    parser.add_argument("--output", default="tuned", help="folder to write to")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    args = parser.parse_args(words)

    dataset = load_dataset("json", data_files=args.dataset, split="train")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="float32")
    if sparsity_record(model) is None:
        config = MWandaConfig(sparsity=0.5, sequence_length=args.sequence_length, text_column=args.column)
        MWandaPruner(config).prune(model, dataset, tokenizer)

    # Without the model, rows are mixed as they are: SFTTrainer makes the tokens.
    mix = mix_languages(dataset, text_column=args.column)
    training = SFTConfig(
        args.output,
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        max_length=args.sequence_length,
        dataset_text_field=args.column,
        bf16=False,
        save_strategy="no",
        report_to="none",
    )
    rows = mix.dataset.select_columns([args.column])
    trainer = SFTTrainer(model, training, train_dataset=rows, processing_class=tokenizer, callbacks=[MWandaCallback()])
    trainer.train()

    trainer.save_model()
    trainer.create_model_card()
    print(verify_sparsity(args.output))


if __name__ == "__main__":
    main()
