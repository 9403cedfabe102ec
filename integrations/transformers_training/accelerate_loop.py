"""Trains a pruned model in a plain loop with accelerate, with its zeros kept.

    accelerate launch accelerate_loop.py --model PRUNED --dataset texts.jsonl --output recovered --steps 1000

Without arguments it runs on the sample of this repository.
"""

import argparse
import itertools
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import load_dataset
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup
from transformers.data import default_data_collator

from optimum_mwanda import (
    MWandaConfig,
    MWandaPruner,
    keep_masks,
    mix_languages,
    save_card,
    sparsity_record,
    verify_sparsity,
)

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
    parser.add_argument("--batch-size", type=int, default=8, help="rows per step and process")
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu", action="store_true", help="train on the CPU even if there is a GPU")
    args = parser.parse_args(words)

    accelerator = Accelerator(cpu=args.cpu)
    set_seed(args.seed)
    dataset = load_dataset("json", data_files=args.dataset, split="train")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="float32")
    if sparsity_record(model) is None:  # every process prunes the same model on the same text, to the same masks
        MWandaPruner(MWandaConfig(sparsity=0.5, sequence_length=args.sequence_length)).prune(model, dataset, tokenizer)

    mix = mix_languages(dataset, model, tokenizer, sequence_length=args.sequence_length)
    rows = mix.dataset.select_columns(["input_ids", "labels"])
    loader = DataLoader(rows, args.batch_size, shuffle=True, collate_fn=default_data_collator, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, args.steps // 20, args.steps)
    trained, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    trained.train()
    with keep_masks(trained, optimizer) as keeper:
        epochs = itertools.chain.from_iterable(itertools.repeat(loader))
        for step, batch in enumerate(itertools.islice(epochs, args.steps), 1):
            loss = trained(**batch).loss
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if step % 10 == 0 or step == args.steps:
                accelerator.print(f"step {step}: loss {loss.item():.3f}, sparsity {keeper.sparsity():.4f}")

    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        model = accelerator.unwrap_model(trained)
        model.save_pretrained(args.output)
        tokenizer.save_pretrained(args.output)
        save_card(model, args.output)
        print(verify_sparsity(args.output))
    accelerator.end_training()


if __name__ == "__main__":
    main()
