"""Measures what each step costs, compared with a bare forward pass of the blocks over the same tokens.

    python benchmarks/speed.py --shapes 1024 2048 mixture --threads 1 --json speed.json
    python benchmarks/speed.py --shapes 1024 --peers llm-compressor=ENVIRONMENT/bin/python --folder FOLDER
    make bench-check

All figures are ratios, of rounds that alternate in one process: machines are noisy, ratios less so. A shape is the
hidden size of a random Llama whose feed-forward layers are 2.75 times as wide, or a mixture of eight experts, two for
each token. The last lines compare masks with sorting, the solvers at several widths, and how long commands and loading
take. `make bench-check` compares with a file of an earlier `--json`, made with the same flags (`--check`).
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peers
import torch
from random_models import make_model, make_rows
from torch import Tensor
from transformers import AutoModelForCausalLM, MixtralForCausalLM
from transformers.utils.logging import disable_progress_bar

from optimum_mwanda import MWandaConfig, MWandaPruner, evaluate_languages, save_pretrained_compressed
from optimum_mwanda.calibration.collector import StatisticsCollector
from optimum_mwanda.calibration.gram import GramCollector
from optimum_mwanda.modeling.blocks import find_blocks, inference_mode, run_blocks, run_model
from optimum_mwanda.modeling.weights import find_weights, flat
from optimum_mwanda.pruning import reconstruction
from optimum_mwanda.pruning.masks import n_of_m_mask, unstructured_mask
from optimum_mwanda.pruning.refinement import refine_mask, shrink_gram
from optimum_mwanda.pruning.selection import select_part

Pieces = dict[str, Callable[[], object]]
FORWARD = "bare forward"
LOGITS = "forward with logits"
PEERS = "llm-compressor=PYTHON of its environment; wanda, ria, owl, sparsegpt, alps=FOLDER of the published code"
LARGE = 32768
"""Tokens of the forward pass that `apply` is compared with, as its time does not depend on their number."""


def make_pieces(model: Any, rows: list[dict[str, Any]], args: argparse.Namespace) -> Pieces:
    """What is measured on a model; the first is what the others are compared with."""

    def pruner(**changes: Any) -> MWandaPruner:
        settings = {
            "samples_per_language": args.samples,
            "sequence_length": args.sequence_length,
            "batch_size": args.batch_size,
            "allocation": "uniform",
        }
        return MWandaPruner(MWandaConfig(**{**settings, **changes}), progress=False)

    blocks = find_blocks(model)
    by_language: dict[str, list[list[int]]] = {}
    for row in rows:
        by_language.setdefault(row["language"], []).append(row["input_ids"])
    batches = [
        (language, {"input_ids": part})
        for language, ids in by_language.items()
        for part in torch.tensor(ids).split(args.batch_size)
    ]

    def forward(run: Callable[[dict[str, Tensor]], object]) -> None:
        with inference_mode(model):
            for _, inputs in batches:
                run(inputs)

    def grams() -> None:
        weights = find_weights(blocks)
        groups = [
            [w for w in found if w.name.rpartition(".")[2] in names]
            for found in weights.values()
            for names in ("q_proj k_proj v_proj", "o_proj", "gate_proj up_proj", "down_proj")
        ]
        with inference_mode(model), GramCollector(groups, dict.fromkeys(by_language, 1.0)) as collector:
            for language, inputs in batches:
                collector.start(language)
                run_blocks(model, blocks, inputs)
        collector.finish()

    default, active, owl = pruner(), pruner(activation="above_rms"), pruner(allocation="owl")
    found = owl.calibrate(model, rows)
    evaluate = partial(evaluate_languages, model, None, rows, sequence_length=args.sequence_length, progress=False)
    pieces: Pieces = {
        FORWARD: lambda: forward(lambda inputs: run_blocks(model, blocks, inputs)),
        "calibrate": lambda: default.calibrate(model, rows),
        "calibrate with activation counts": lambda: active.calibrate(model, rows),
        "allocate, select, write": lambda: owl.apply(model, found),
        LOGITS: lambda: forward(lambda inputs: run_model(model, inputs).logits),
        "evaluate": lambda: evaluate(batch_size=args.batch_size),
        "prune": lambda: default.prune(model, rows),
        "prune, sequential": lambda: pruner(calibration="sequential").prune(model, rows),
    }
    if not args.quick:
        pieces["prune, refinement"] = lambda: pruner(refinement="swap").prune(model, rows)
        pieces["prune, reconstruction"] = lambda: pruner(reconstruction="obs").prune(model, rows)
        pieces["prune, sparsegpt"] = lambda: pruner(criterion="sparsegpt").prune(model, rows)
        pieces["prune, alps"] = lambda: pruner(criterion="alps").prune(model, rows)
    if not isinstance(model, MixtralForCausalLM):
        pieces["Gram matrices, with the forward"] = grams
    return pieces


def chosen(pieces: Pieces, only: list[str]) -> Pieces:
    """Those whose names begin with some words, and what they are compared with; all, if there are no words."""
    if not only:
        return pieces
    found = {name for name in pieces if name.startswith(tuple(only))} | {FORWARD}
    if found == {FORWARD}:
        raise SystemExit(f"No step begins with {' or '.join(map(repr, only))}: there are {', '.join(pieces)}.")
    return {name: work for name, work in pieces.items() if name in found or (name == LOGITS and "evaluate" in found)}


def clock(work: Callable[[], object], cpu: bool) -> float:
    now = time.process_time if cpu else time.perf_counter
    start = now()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return now() - start


def measure(pieces: Pieces, args: argparse.Namespace, undo: Callable[[], object]) -> dict[str, list[float]]:
    """Seconds of every piece, round by round, after a round that does not count; each round in an order of its own.

    What comes after what matters: memory is warm, or the processor hot.
    """
    times: dict[str, list[float]] = {name: [] for name in pieces}
    order = random.Random(0)
    for number in range(args.rounds + 1):
        for name, work in order.sample([*pieces.items()], len(pieces)):
            seconds = clock(work, args.clock == "cpu")
            undo()
            if number:
                times[name].append(seconds)
    return times


def ratios(times: dict[str, list[float]], tokens: int) -> dict[str, list[float]]:
    """Each round's time as a multiple of the forward pass of that round."""
    found = {}
    for name, seconds in times.items():
        base = times[LOGITS if name == "evaluate" else FORWARD]
        scale = tokens / LARGE if name == "allocate, select, write" else 1.0
        found[name] = [scale * own / other for own, other in zip(seconds, base, strict=True)]
    return found


def size_of_statistics(model: Any, languages: int) -> float:
    """Memory for the sums of all languages while the model is calibrated, as a share of the weights that are pruned."""
    blocks = find_blocks(model)
    weights = flat(find_weights(blocks))
    with (
        inference_mode(model),
        StatisticsCollector(weights, [f"l{row:02d}" for row in range(languages)], []) as collector,
    ):
        collector.start("l00")
        run_blocks(model, blocks, {"input_ids": torch.arange(64, device=model.device)[None] % model.config.vocab_size})
        collector.energies()
        sums = {id(each): each.square_sum.nbytes for each in collector._sums.values()}  # what weights have in common
    return sum(sums.values()) / sum(weight.matrix.nbytes for weight in weights)


def of_matrices(args: argparse.Namespace) -> dict[str, float]:
    """Masks against sorting, and the solvers at several widths as multiples of SparseGPT."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(1024, 2816, generator=generator)

    def by_sorting() -> Tensor:
        mask = torch.zeros_like(scores, dtype=torch.bool)
        return mask.scatter_(1, torch.sort(scores, dim=1, stable=True).indices[:, : scores.shape[1] // 2], True)

    def by_columns() -> Tensor:
        mask = torch.zeros_like(scores, dtype=torch.bool)
        for column in range(0, scores.shape[1], 4):
            lowest = torch.topk(scores[:, column : column + 4], 2, dim=1, largest=False).indices
            mask.scatter_(1, column + lowest, True)
        return mask

    pieces: Pieces = {
        "rows": lambda: unstructured_mask(scores, 0.5, "row"),
        "rows by sorting": by_sorting,
        "2:4": lambda: n_of_m_mask(scores, 2, 4),
        "2:4 by columns": by_columns,
    }
    best = {name: min(seconds) for name, seconds in measure(pieces, args, lambda: None).items()}
    found = {
        "selecting, of a row sort": best["rows"] / best["rows by sorting"],
        "selecting 2:4, of a column loop": best["2:4"] / best["2:4 by columns"],
    }
    times: dict[str, list[float]] = {}
    for width in (64, *args.widths) if args.widths else ():  # the first one does not count
        x = torch.randn(2 * width, width, generator=generator) * torch.rand(width, generator=generator)
        gram = x.T @ x
        gram /= gram.trace()
        weight = torch.randn(width, width, generator=generator)
        config = MWandaConfig(group="row", calibration="dense")
        part = partial(select_part, sparsity=0.5, config=config)
        whole = partial(unstructured_mask, sparsity=0.5, group="row")
        mask = whole(weight.abs() * gram.diagonal().sqrt())
        work: Pieces = {
            "sparsegpt": partial(reconstruction.sparsegpt, weight, gram, part, damping=0.1),
            "alps": partial(reconstruction.admm, weight, gram, whole, damping=0.1),
            "swap": lambda w=weight, m=mask, g=gram: refine_mask(w, m, shrink_gram(g, 0.3, 2)),  # type: ignore[misc]
            "eigenvectors": partial(torch.linalg.eigh, gram),
        }
        for name, each in work.items():
            times.setdefault(name, []).append(clock(each, args.clock == "cpu"))
        if len(times["sparsegpt"]) > 1:
            found |= {f"{name} at width {width}": own[-1] / times["sparsegpt"][-1] for name, own in times.items()}
            found[f"seconds of sparsegpt at width {width}"] = times["sparsegpt"][-1]
    if len(args.widths) > 1:
        found |= {f"{name}, power of the width": power_of(args.widths, own[1:]) for name, own in times.items()}
    return found


def power_of(sizes: list[int], seconds: list[float]) -> float:
    """The `p` of `seconds ~ size^p`, by least squares of the logarithms."""
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (sizes, seconds))
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())


def of_starts(args: argparse.Namespace) -> dict[str, float]:
    """Processor time of commands and imports, and of loading compressed weights; the least of several tries."""

    def seconds(*words: str) -> float:
        def once() -> float:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(words, stdout=subprocess.DEVNULL, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

        return min(once() for _ in range(10))

    cli = str(Path(sys.executable).with_name("optimum-cli"))
    found = {
        "import optimum_mwanda, ms": 1000
        * (seconds(sys.executable, "-c", "import optimum_mwanda") - seconds(sys.executable, "-c", "pass")),
        "optimum-cli mwanda --help, of optimum-cli --help": seconds(cli, "mwanda", "--help") / seconds(cli, "--help"),
    }
    with tempfile.TemporaryDirectory() as folder:
        model = make_model("1024", args)
        with torch.no_grad():
            for weights in find_weights(find_blocks(model)).values():
                for weight in weights:
                    weight.matrix.masked_fill_(unstructured_mask(weight.matrix.abs(), 0.5, "row"), 0)
        model = MWandaPruner(MWandaConfig(criterion="magnitude", allocation="uniform"), progress=False).prune(model)
        model.save_pretrained(f"{folder}/dense")
        save_pretrained_compressed(model, f"{folder}/compressed")

        def load(name: str) -> None:
            loaded = AutoModelForCausalLM.from_pretrained(f"{folder}/{name}", dtype="auto")
            sum(float(parameter.detach().sum()) for parameter in loaded.parameters())  # so that its pages are read

        pieces: Pieces = {"dense": lambda: load("dense"), "compressed": lambda: load("compressed")}
        best = {name: min(each) for name, each in measure(pieces, args, lambda: None).items()}
        found["compressed load, of dense"] = best["compressed"] / best["dense"]
    return found


def compare(found: dict[str, dict[str, float]], baseline: Path, margin: float) -> list[str]:
    """What costs more than in an earlier run."""
    earlier = json.loads(baseline.read_text(encoding="utf-8"))
    return [
        f"{group}: {name} is {value:.2f}, was {earlier[group][name]:.2f}"
        for group, values in found.items()
        for name, value in values.items()
        if name in earlier.get(group, {})
        and value - earlier[group][name] > (margin - 1) * abs(earlier[group][name]) + 0.05
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["1024"], help="hidden sizes, mixture, or mixture-HIDDEN")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--languages", type=int, default=15)
    parser.add_argument("--samples", type=int, default=1, help="chunks per language")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"], help="cpu: less noise on a shared machine")
    parser.add_argument("--quick", action="store_true", help="leave out the solvers on whole models")
    parser.add_argument("--only", nargs="*", default=[], help="steps to measure, as their names begin")
    parser.add_argument("--widths", type=int, nargs="*", default=[], help="widths to run the solvers at")
    parser.add_argument("--starts", action="store_true", help="also measure commands, imports and loading")
    parser.add_argument("--peers", nargs="*", default=[], metavar="NAME=PATH", help=PEERS)
    parser.add_argument("--folder", type=Path, help="where peers find the model; it is written there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write medians")
    parser.add_argument("--check", type=Path, metavar="FILE", help="fail if a median is above one of this file")
    parser.add_argument("--margin", type=float, default=1.5)
    args = parser.parse_args()
    if args.peers and args.folder is None:
        parser.error("--peers needs --folder")

    disable_progress_bar()
    torch.set_num_threads(args.threads)
    rows = make_rows(args)
    tokens = sum(len(row["input_ids"]) for row in rows)
    found: dict[str, dict[str, float]] = {}
    for shape in args.shapes:
        model = make_model(shape, args)
        dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if args.peers:
            peers.print_table(model, rows, args)
            continue
        size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        print(f"{shape}: {size:.0f} M parameters, {tokens} tokens, {args.dtype}, {args.threads} threads")
        pieces = chosen(make_pieces(model, rows, args), args.only)
        measured = ratios(measure(pieces, args, partial(model.load_state_dict, dense)), tokens)
        for name, each in measured.items():
            print(f"{name:40s} {statistics.median(each):7.3f} ({min(each):.3f} to {max(each):.3f})", flush=True)
        found[shape] = {name: statistics.median(each) for name, each in measured.items()}
        found[shape]["memory of statistics, of the weights"] = share = size_of_statistics(model, args.languages)
        print(f"{'memory of statistics, of the weights':40s} {share:7.4f}", flush=True)
    if not args.peers and not args.only:
        found["matrices"] = of_matrices(args)
        if args.starts:
            found["starts"] = of_starts(args)
        for group in ("matrices", "starts"):
            for name, value in found.get(group, {}).items():
                print(f"{name:52s} {value:7.3f}")
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if args.check is not None and (slower := compare(found, args.check, args.margin)):
        raise SystemExit("Slower than before:\n" + "\n".join(slower))


if __name__ == "__main__":
    main()
