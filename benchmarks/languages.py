"""Measures what reading calibration text takes as languages become many, on text that it makes itself.

    python benchmarks/languages.py --languages 10 100 1000

Every line is a process of its own, so that its peak of memory is its own. Times depend on the machine; rows do not.
"""

import argparse
import json
import multiprocessing
import random
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from datasets import IterableDataset
from peak_memory import peak_memory
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_mwanda import MWandaConfig
from optimum_mwanda.data.chunks import build_chunks
from optimum_mwanda.utils import markdown_table

EXAMPLES = Path(__file__).parents[1] / "examples"
SHARDS = 4
ORDERS = {
    "in turn": "every shard holds a row of each language, then another one of each",
    "one by one": "every shard holds all rows of a language, then those of the next",
    "drawn": "as 'in turn', with a reservoir of all rows",
    "dict": "a stream per language",
}


def make_stream(languages: list[str], rows: int, order: str, read: list[int]) -> IterableDataset | dict:
    """Rows of three sentences, the same for the same arguments; each row that is read is counted."""
    lines = (EXAMPLES / "sample_data" / "calibration.jsonl").read_text(encoding="utf-8").splitlines()
    sentences = [json.loads(line)["text"] for line in lines]

    def row(language: str, number: int) -> dict[str, str]:
        read.append(number)
        choose = random.Random(f"{language} {number}").choice
        return {"language": language, "text": " ".join(choose(sentences) for _ in range(3))}

    def in_turn(shards: list[int], languages: list[str]) -> Iterator[dict[str, str]]:
        for shard in shards:
            for number in range(shard, rows, SHARDS):
                yield from (row(language, number) for language in languages)

    def one_by_one(shards: list[int], languages: list[str]) -> Iterator[dict[str, str]]:
        for shard in shards:
            for language in languages[shard::SHARDS]:
                yield from (row(language, number) for number in range(rows))

    def stream(languages: list[str]) -> IterableDataset:
        generate = one_by_one if order == "one by one" else in_turn
        shards = {"shards": list(range(SHARDS))}
        return IterableDataset.from_generator(lambda shards: generate(shards, languages), gen_kwargs=shards)

    return {language: stream([language]) for language in languages} if order == "dict" else stream(languages)


def measure(count: int, order: str, args: argparse.Namespace) -> list[str]:
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(EXAMPLES / "sample_model")
    model = AutoModelForCausalLM.from_pretrained(EXAMPLES / "sample_model", dtype=torch.float32)
    languages, read = [f"l{number:04d}" for number in range(count)], []
    config = MWandaConfig(
        languages=languages,
        samples_per_language=args.samples,
        sequence_length=args.sequence_length,
        reservoir=args.rows if order == "drawn" else None,
    )
    # What is loaded at the first use does not count.
    build_chunks(
        make_stream(languages[:1], args.rows, order, []), config.replace(languages=("l0000",)), model, tokenizer
    )
    dataset = make_stream(languages, args.rows, order, read)
    before, start = peak_memory(), time.perf_counter()
    chunks = build_chunks(dataset, config, model, tokenizer)
    seconds, peak = time.perf_counter() - start, (peak_memory() - before) / 2**20
    tokens = sum(chunks.tokens.values())
    return [
        f"{count:,}, {order}",
        f"{len(read):,} of {count * args.rows:,}",
        f"{tokens:,}",
        f"{seconds:.1f}",
        f"{peak:.0f}",
        f"{8 * tokens / 2**20:.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--languages", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--rows", type=int, default=50, help="rows per language (default: 50)")
    parser.add_argument("--samples", type=int, default=4, help="chunks per language (default: 4)")
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=list(ORDERS), help=str(ORDERS))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    header = ["languages, order", "rows read", "tokens", "seconds", "peak (MB)", "token ids (MB)"]
    rows = []
    for count in args.languages:
        for order in args.orders:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                rows.append(process.submit(measure, count, order, args).result())
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
