"""Measures what it saves that calibration text is read and tokenised while the model runs.

    python benchmarks/reading.py --model DIR --dataset texts.jsonl
    python benchmarks/reading.py --model DIR --dataset texts.jsonl --device cuda --dtype bfloat16
    python benchmarks/reading.py --model DIR --dataset texts.jsonl --tokens-per-second 35000
    python benchmarks/reading.py --model DIR --dataset texts.jsonl --tokens-per-second 35000 --streams

Text is read first, and as it comes, in turn. With --tokens-per-second the model does not run: in its place stands a
device that needs this time for every batch and leaves the processor free but for starting its kernels, as a GPU does.
With --streams each language is a stream of a file of its own.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_mwanda import MWandaConfig
from optimum_mwanda.data.chunks import CalibrationText
from optimum_mwanda.modeling.blocks import inference_mode
from optimum_mwanda.pruning.checks import open_model
from optimum_mwanda.utils import markdown_table
from optimum_mwanda.walking import calibrating

Times = list[float]


def timed(work: Callable[[], Any]) -> Times:
    """Seconds on the clock, and of the processor."""
    start, used = time.perf_counter(), time.process_time()
    work()
    return [time.perf_counter() - start, time.process_time() - used]


def stand_in(text: CalibrationText, args: argparse.Namespace) -> None:
    one = torch.ones(1)
    for _, inputs in text.batches(args.batch_size):
        end = time.perf_counter() + inputs["input_ids"].numel() / args.tokens_per_second
        for _ in range(args.kernels):
            one + one
        time.sleep(max(end - time.perf_counter(), 0))


def streams(dataset: Dataset, folder: Path) -> dict[str, IterableDataset]:
    languages = dataset["language"]
    found = {}
    for language in sorted({*languages}):
        path = folder / f"{language}.jsonl"
        dataset.select([row for row, other in enumerate(languages) if other == language]).to_json(path)
        found[language] = load_dataset("json", data_files=str(path), split="train", streaming=True)
    return found


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True, help="JSON lines with 'language' and 'text'")
    parser.add_argument("--samples", type=int, default=32, help="chunks per language (default: 32)")
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--streams", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--tokens-per-second", type=float, help="of a device in place of the model")
    parser.add_argument("--kernels", type=int, default=1000, help="that it starts per batch (default: 1000)")
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        measure(args, Path(folder))


def measure(args: argparse.Namespace, folder: Path) -> None:
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype).to(args.device)
    table = load_dataset("json", data_files=args.dataset, split="train")
    dataset = streams(table, folder) if args.streams else table
    config = MWandaConfig(
        samples_per_language=args.samples, sequence_length=args.sequence_length, batch_size=args.batch_size
    )
    weights, source = open_model(model, config)
    calibrating.input_device = lambda _: torch.device("cuda")  # on a CPU, all would be read first
    tokens = 0

    def read() -> CalibrationText:
        nonlocal tokens
        text = CalibrationText(dataset, config, model, tokenizer)
        tokens = sum(text.whole().tokens.values())
        return text

    def run(text: CalibrationText) -> None:
        if args.tokens_per_second is not None:
            stand_in(text, args)
            return
        with inference_mode(model):
            calibrating.calibrate(model, weights, text, config, source)

    ways: dict[str, Callable[[], Any]] = {
        "reading alone": read,
        "read first": lambda: run(read()),
        "read while the model runs": lambda: run(CalibrationText(dataset, config, model, tokenizer)),
    }
    read()  # what is loaded at the first use does not count
    found: dict[str, list[Times]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, work in ways.items():
            found[name].append(timed(work))
    first = found["read first"]
    rows = []
    for name, times in found.items():
        shares = [time[0] / other[0] for time, other in zip(times, first, strict=True)]
        rows.append(
            [
                name,
                *(f"{statistics.median(column):.2f}" for column in zip(*times, strict=True)),
                f"{statistics.median(shares):.3f} ({min(shares):.3f} to {max(shares):.3f})",
            ]
        )
    used = statistics.median(seconds for _, seconds in found["reading alone"])
    print(f"{tokens:,} tokens, read at {tokens / used:,.0f} per processor second")
    print(markdown_table(["", "seconds", "processor seconds", "of read first, in a round"], rows))


if __name__ == "__main__":
    main()
