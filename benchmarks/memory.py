"""Measures peak memory and time of pruning a checkpoint in memory and streamed, each in a process of its own.

    python benchmarks/memory.py FOLDER [--llm-compressor ENVIRONMENT/bin/python]

A random Llama is written into FOLDER once (3.3 GB with the defaults, about three times that while it is pruned). Memory
is the peak of the resident set, as the operating system counts it, and includes Python and the libraries, which are
shown apart: it is what a process has that has imported everything and loaded nothing. Processor time is that of all
threads. On a machine that does other work compare the two modes within a round, and both times. llm-compressor needs an
environment of its own; its Wanda per row, with blocks calibrated one after the other, reads the same tokens.
"""

import argparse
import inspect
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peak_memory import peak_memory
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

from optimum_mwanda import MWandaConfig, MWandaPruner, check_saved, prune_checkpoint

MODES = ("libraries", "memory", "stream")
CLOCKS = {"seconds": "time", "processor": "processor time"}


def make_model(folder: Path, args: argparse.Namespace) -> None:
    """Writes a random model."""
    config = LlamaConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 4,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 128,
        num_key_value_heads=args.hidden // 128,
        max_position_embeddings=args.sequence_length,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(getattr(torch, args.dtype))
    model.save_pretrained(folder, max_shard_size="1GB")


def settings(args: argparse.Namespace) -> MWandaConfig:
    return MWandaConfig(
        samples_per_language=args.samples,
        sequence_length=args.sequence_length,
        batch_size=2,
        calibration=args.calibration,
        refinement=args.refinement,
    )


def rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(args.vocabulary, (args.languages, args.samples, args.sequence_length), generator=generator)
    return [
        {"language": f"l{language}", "input_ids": row.tolist()} for language, each in enumerate(ids) for row in each
    ]


def work(mode: str, args: argparse.Namespace) -> None:
    """What a process of one mode does; its seconds and its peak are printed as JSON."""
    source, target = args.folder / "dense", args.folder / mode
    shutil.rmtree(target, ignore_errors=True)
    start, used = time.perf_counter(), time.process_time()
    if mode == "memory":
        model = LlamaForCausalLM.from_pretrained(source, dtype="auto")
        MWandaPruner(settings(args), progress=False, restore_on_failure=False).prune(model, rows(args))
        model.save_pretrained(target)
        check_saved(model, target)
    elif mode == "stream":
        prune_checkpoint(source, target, settings(args), rows(args), activations=args.activations, progress=False)
    seconds, processor = time.perf_counter() - start, time.process_time() - used
    print(json.dumps({"seconds": seconds, "processor": processor, "peak": peak_memory()}))


LLM_COMPRESSOR = """
import json, sys, time
from pathlib import Path
import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import WandaPruningModifier
from transformers import AutoTokenizer, LlamaForCausalLM

source, target, file, length, tokenizer = sys.argv[1:]
rows = json.loads(Path(file).read_text())
start, used = time.perf_counter(), time.process_time()
if target != "libraries":
    model = LlamaForCausalLM.from_pretrained(source, dtype="auto")
    data = Dataset.from_list([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows])
    recipe = WandaPruningModifier(sparsity=0.5, mask_structure="0:0", targets=["Linear"], ignore=["re:.*lm_head"])
    processor = AutoTokenizer.from_pretrained(tokenizer)  # it is asked for, but has nothing to do
    oneshot(model=model, processor=processor, dataset=data, recipe=recipe, max_seq_length=int(length),
            num_calibration_samples=len(rows), pipeline="sequential")
    model.save_pretrained(target)
seconds, processor = time.perf_counter() - start, time.process_time() - used
print(json.dumps({"seconds": seconds, "processor": processor, "peak": peak_memory()}))
"""


def run(words: list[str]) -> dict[str, float]:
    """Runs a process; what its last line says."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--languages", type=int, default=3)
    parser.add_argument("--samples", type=int, default=2, help="chunks per language")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--calibration", default="dense", choices=["dense", "sequential"])
    parser.add_argument("--refinement", default="none", choices=["none", "swap"])
    parser.add_argument("--activations", default="cpu", help="where hidden states are kept: cpu, or a folder")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--llm-compressor", metavar="PYTHON", help="interpreter that has llm-compressor")
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.mode:
        work(args.mode, args)
        return
    if not (args.folder / "dense").is_dir():
        make_model(args.folder / "dense", args)
    size = sum(path.stat().st_size for path in (args.folder / "dense").glob("*.safetensors"))
    width = 4 if args.dtype == "float32" else 2
    block = width * (4 * args.hidden**2 + 3 * args.hidden * args.hidden * 4)
    embeddings = width * args.vocabulary * args.hidden
    activations = width * args.languages * args.samples * args.sequence_length * args.hidden
    print(f"checkpoint {size / 1e9:.2f} GB, one block {block / 1e6:.0f} MB, embeddings {embeddings / 1e6:.0f} MB, ")
    print(f"hidden states {activations / 1e6:.0f} MB; two blocks + embeddings + hidden states + 300 MB: ", end="")
    print(f"{(2 * block + embeddings + activations + 300e6) / 1e6:.0f} MB\n")
    print("| round | mode | peak, MB | without libraries, MB | seconds | processor seconds |")
    print("|---|---|---:|---:|---:|---:|")
    ratios: dict[str, list[float]] = {clock: [] for clock in CLOCKS}
    for number in range(args.rounds):
        own = [sys.executable, __file__, *sys.argv[1:], "--mode"]
        measured = {mode: run([*own, mode]) for mode in MODES}
        if args.llm_compressor:
            (args.folder / "rows.json").write_text(json.dumps([row["input_ids"] for row in rows(args)]))
            program = inspect.getsource(peak_memory) + LLM_COMPRESSOR  # another environment, where this is not found
            peer = [args.llm_compressor, "-c", program, str(args.folder / "dense")]
            tokenizer = Path(__file__).parents[1] / "examples" / "sample_model"
            rest = [str(args.folder / "rows.json"), str(args.sequence_length), str(tokenizer)]
            measured["its libraries"] = run([*peer, "libraries", *rest])
            measured["llm-compressor"] = run([*peer, str(args.folder / "llm-compressor"), *rest])
        libraries = 0.0
        for mode, found in measured.items():
            libraries = found["peak"] if "libraries" in mode else libraries
            more = found["peak"] - libraries
            cells = [f"{found['peak'] / 1e6:.0f}", f"{more / 1e6:.0f}"]
            cells += [f"{found[clock]:.1f}" for clock in ratios]
            print(f"| {number + 1} | {mode} | {' | '.join(cells)} |", flush=True)
        for clock, values in ratios.items():
            values.append(measured["stream"][clock] / measured["memory"][clock])
    said = [f"{statistics.median(values):.2f} x the {CLOCKS[clock]}" for clock, values in ratios.items()]
    print(f"\nStreaming takes, in the median of the rounds, {' and '.join(said)} of pruning in memory.")
    print(f"The results are {'the same' if same(args.folder / 'memory', args.folder / 'stream') else 'DIFFERENT'}.")


def same(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same tensors, read one at a time."""
    places = [
        {name: path for path in folder.glob("*.safetensors") for name in safe_open(path, "pt").keys()}  # noqa: SIM118
        for folder in (one, other)
    ]
    return places[0].keys() == places[1].keys() and all(
        torch.equal(*(safe_open(found[name], "pt").get_tensor(name) for found in places)) for name in places[0]
    )


if __name__ == "__main__":
    main()
