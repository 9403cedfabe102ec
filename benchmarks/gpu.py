"""Measures on one GPU what pruning a model of 8B costs, in time and memory, and writes one JSON file.

    bash benchmarks/gpu.sh --output gpu.json

`docs/performance.md` says what it gave on an H200. The tests run it on the CPU with a tiny model.

The model is a random Llama with the shape of Llama 3.1 8B in bfloat16, and the text 15 languages of 16 chunks of 2048
random tokens. First come the parts of a default prune, beside a bare forward pass of the same batches; then the same
prune with the blocks in the memory of the host; then swap, OBS, SparseGPT and ALPS on one block; then single steps of
these; then linear layers with 2:4 weights in the sparse kernels of torch, beside dense ones, called from Python and
replayed from a CUDA graph, which spends no time between kernels. Every size is a flag.

The file is written after each part. A part that fails is recorded with its error, and the others run; what does not fit
into `--budget` seconds is recorded as skipped. Peak memory is that of the GPU, as torch allocates it.
"""

import argparse
import json
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

START = time.perf_counter()

import accelerate  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from optimum_mwanda import MWandaConfig, MWandaPruner  # noqa: E402
from optimum_mwanda.modeling.blocks import find_blocks, inference_mode, run_blocks  # noqa: E402
from optimum_mwanda.modeling.host_memory import to_host  # noqa: E402
from optimum_mwanda.pruning.inverse_factor import inverse_factor  # noqa: E402
from optimum_mwanda.pruning.masks import n_of_m_mask, prune_lowest  # noqa: E402

_RUNS: dict[str, Any] = {"pattern": "2:4", "allocation": "uniform"}
METHODS: dict[str, dict[str, Any]] = {
    "swap on one block": {"refinement": "swap"},
    "swap, 2:4, on one block": {"refinement": "swap", **_RUNS},
    "obs on one block": {"reconstruction": "obs"},
    "sparsegpt on one block": {"criterion": "sparsegpt"},
    "sparsegpt, 2:4, on one block": {"criterion": "sparsegpt", **_RUNS},
    "alps on one block": {"criterion": "alps"},
}
REPEATS = 20


class Bench:
    """The parts, which hand over the model and the statistics to each other."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = torch.device(args.device)
        generator = torch.Generator().manual_seed(0)
        shape = (args.languages, args.samples, args.sequence_length)
        self.ids = torch.randint(args.vocabulary, shape, generator=generator)
        self.rows = [
            {"language": f"l{language:02}", "input_ids": row.tolist()}
            for language, each in enumerate(self.ids)
            for row in each
        ]
        self.results: dict[str, Any] = {}
        self.model: Any = None
        self.found: Any = None
        self.plan: Any = None

    def parts(self) -> dict[str, Callable[[], dict[str, Any] | None]]:
        """Name of a part to what it does, in order; it returns what it has to say besides its time and memory."""
        return {
            "make the model": lambda: self.make(self.args.layers),
            "bare forward": self.forward,
            "calibrate": self.calibrate,
            "allocate": self.allocate,
            "apply": self.apply,
            "prune from host memory": self.stream,
            "make one block": lambda: self.make(1),
            **{name: partial(self.one_block, changes) for name, changes in METHODS.items()},
            "steps": self.steps,
            "2:4": self.semi_structured,
        }

    def pruner(self, **changes: Any) -> MWandaPruner:
        sizes = {"samples_per_language": self.args.samples, "sequence_length": self.args.sequence_length}
        config = MWandaConfig(**{**sizes, "batch_size": self.args.batch_size, **changes})
        return MWandaPruner(config, progress=False)

    def make(self, layers: int) -> dict[str, Any]:
        args = self.args
        self.model = self.found = self.plan = None
        config = LlamaConfig(
            vocab_size=args.vocabulary,
            hidden_size=args.hidden,
            intermediate_size=args.intermediate,
            num_hidden_layers=layers,
            num_attention_heads=args.heads,
            num_key_value_heads=args.kv_heads,
            max_position_embeddings=args.sequence_length,
            dtype=args.dtype,
        )
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, args.dtype))
        try:
            with self.device:
                self.model = LlamaForCausalLM(config).eval()
        finally:
            torch.set_default_dtype(before)
        return {"parameters": sum(parameter.numel() for parameter in self.model.parameters())}

    def forward(self) -> dict[str, Any]:
        blocks = find_blocks(self.model)
        batches = [batch for each in self.ids for batch in each.split(self.args.batch_size)]
        with inference_mode(self.model):
            run_blocks(self.model, blocks, {"input_ids": batches[0]})  # a first batch, which is slower
            self.wait()
            start = time.perf_counter()
            for batch in batches:
                run_blocks(self.model, blocks, {"input_ids": batch})
            self.wait()
        return {"seconds": time.perf_counter() - start, "tokens": self.ids.numel()}

    def calibrate(self) -> None:
        self.found = self.pruner().calibrate(self.model, self.rows)

    def allocate(self) -> None:
        self.plan = self.pruner().allocate(self.model, self.found)

    def apply(self) -> dict[str, Any]:
        self.pruner().apply(self.model, self.found, self.plan)
        return {"sparsity": self.model.config.mwanda_config["achieved_sparsity"]}

    def stream(self) -> dict[str, Any]:
        self.make(self.args.layers)
        accelerate.cpu_offload(self.model, self.device)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        self.pruner().prune(self.model, self.rows)
        self.wait()
        return {"seconds": time.perf_counter() - start}

    def one_block(self, changes: dict[str, Any]) -> None:
        for parameter in find_blocks(self.model)["model.layers.0"].parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.02)
        self.pruner(**changes).prune(self.model, self.rows)

    def steps(self) -> dict[str, Any]:
        """What single steps take on a matrix of an MLP and on Gram matrices, in seconds."""
        args = self.args
        weight = torch.randn(args.intermediate, args.hidden, device=self.device, dtype=getattr(torch, args.dtype))
        scores = weight.float().abs() * torch.rand(args.hidden, device=self.device)
        whole = scores.view(1, -1)
        work: dict[str, Callable[[], object]] = {
            "lowest half of every row": lambda: prune_lowest(scores, scores.shape[1] // 2),
            "lowest half of the matrix": lambda: prune_lowest(whole, whole.shape[1] // 2),
            "2:4": lambda: n_of_m_mask(scores, 2, 4),
            "into new memory of the host": lambda: to_host(weight, copy=True),
            "into new memory of the host, by the driver": lambda: weight.to("cpu", copy=True),
        }
        for width in (args.hidden, args.intermediate):
            x = torch.randn(width, 2 * width, device=self.device)
            gram = x @ x.T
            work[f"inverse by Cholesky, {width} channels"] = partial(_inverse, gram)
            work[f"eigenvectors, {width} channels"] = partial(torch.linalg.eigh, gram)
            work[f"factor of SparseGPT, {width} channels"] = partial(inverse_factor, gram, 0.01)
        return {"steps": {name: self.clock(each, 3) for name, each in work.items()}}

    def semi_structured(self) -> dict[str, Any]:
        args = self.args
        kind = getattr(torch, args.dtype)
        found = []
        for rows, columns in (
            (args.hidden, args.hidden),
            (args.intermediate, args.hidden),
            (args.hidden, args.intermediate),
        ):
            weight = torch.randn(rows, columns, device=self.device, dtype=kind)
            weight.masked_fill_(n_of_m_mask(weight.float().abs(), 2, 4), 0)
            sparse = torch.sparse.to_sparse_semi_structured(weight)
            for batch in args.batches:
                x = torch.randn(batch, columns, device=self.device, dtype=kind)
                both = [partial(torch.nn.functional.linear, x, each) for each in (weight, sparse)]
                dense, packed = map(self.clock, both)
                dense_replayed, packed_replayed = (self.clock(_captured(work)) for work in both)
                error = (both[0]() - both[1]()).abs().max()
                shape = {"out": rows, "in": columns, "batch": batch, "largest_difference": error.item()}
                called = {"dense_seconds": dense, "sparse_seconds": packed, "speed_up": dense / packed}
                replayed = {
                    "dense_replayed_seconds": dense_replayed,
                    "sparse_replayed_seconds": packed_replayed,
                    "speed_up_replayed": dense_replayed / packed_replayed,
                }
                found.append({**shape, **called, **replayed})
        return {"layers": found}

    def clock(self, work: Callable[[], object], repeats: int = REPEATS) -> float:
        """Median seconds of a short piece of work."""
        times = []
        for _ in range(repeats + 3):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times[3:])

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def run(self) -> None:
        """Runs all parts, whatever becomes of each of them."""
        for name, work in self.parts().items():
            left = self.args.budget - (time.perf_counter() - START)
            self.results[name] = self.measure(work, left) if left > 0 else {"skipped": "no time was left"}
            print(name, json.dumps(self.results[name])[:300], file=sys.stderr, flush=True)
            self.write()

    def measure(self, work: Callable[[], dict[str, Any] | None], left: float) -> dict[str, Any]:
        on_gpu = self.device.type == "cuda"
        before = signal.signal(signal.SIGALRM, _out_of_time)
        try:
            if on_gpu:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            self.wait()
            signal.setitimer(signal.ITIMER_REAL, left)
            start = time.perf_counter()
            more = work() or {}
            self.wait()
            found = {"seconds": time.perf_counter() - start, **more}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        return {**found, "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None}

    def summary(self) -> dict[str, Any]:
        """What the parts say together; None where a part is missing."""
        seconds = {name: found.get("seconds") for name, found in self.results.items()}
        bare, own = seconds.get("bare forward"), seconds.get("calibrate")
        steps = [seconds.get(name) for name in ("calibrate", "allocate", "apply")]
        return {
            "calibration, in bare forwards": own / bare if own and bare else None,
            "default prune, seconds": sum(steps) if all(steps) else None,  # type: ignore[arg-type]
        }

    def write(self) -> None:
        on_gpu = self.device.type == "cuda"
        content = {
            "device": torch.cuda.get_device_name() if on_gpu else self.device.type,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "settings": {
                name: str(value) if isinstance(value, Path) else value for name, value in vars(self.args).items()
            },
            "seconds": time.perf_counter() - START,
            "summary": self.summary(),
            "parts": self.results,
        }
        partial = self.args.output.with_name(f"{self.args.output.name}.part")
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.args.output)


def _inverse(gram: torch.Tensor) -> torch.Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(gram))


def _captured(work: Callable[[], object]) -> Callable[[], object]:
    """The same work, replayed from a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def _out_of_time(*_: Any) -> None:
    raise TimeoutError("the time budget was used up")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--intermediate", type=int, default=14336)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=128256)
    parser.add_argument("--languages", type=int, default=15)
    parser.add_argument("--samples", type=int, default=16, help="chunks per language")
    parser.add_argument("--sequence-length", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--batches", type=int, nargs="+", default=[2**power for power in range(13)], help="for 2:4")
    parser.add_argument("--budget", type=float, default=500, help="seconds from the start after which no part goes on")
    Bench(parser.parse_args(words)).run()


if __name__ == "__main__":
    main()
