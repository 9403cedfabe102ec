"""Published code of Wanda, RIA, OWL, SparseGPT and ALPS beside ours, on the same matrices; `speed.py --peers` runs it.

    python benchmarks/published.py NAME FOLDER_OF_THEIR_CODE FOLDER_OF_A_MODEL ROWS.json THREADS ROUNDS

The scripts around that code ask for data sets, GPUs and versions of transformers of their time. So a dense Llama runs
once here, and what enters its matrices is kept. Then their code is given blocks that only play this back, and so is
ours: both sum up what they need, choose half of the weights of every matrix, and set them to zero. Each peer needs a
process of its own, as their modules have the same names.
"""

import io
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from optimum_mwanda import MWandaConfig, MWandaPruner
from optimum_mwanda.calibration.collector import StatisticsCollector
from optimum_mwanda.calibration.gram import GramCollector
from optimum_mwanda.modeling.blocks import find_blocks
from optimum_mwanda.modeling.weights import find_weights, flat
from optimum_mwanda.presets import METHODS
from optimum_mwanda.pruning.reconstruction import layer_error
from optimum_mwanda.pruning.same_input import sharing_inputs
from optimum_mwanda.pruning.update import mask_and_values

LANGUAGE = "text"
SPARSITY = 0.5
INPUTS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))


class Played(nn.Module):
    """A block whose matrices get, for sample `j`, what entered them when the model ran; no product is computed."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        for name, child in block.named_children():
            self.add_module(name, child)
        self.linears = [child for child in block.modules() if type(child) is nn.Linear]
        self.seen: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {linear: [] for linear in self.linears}

    def record(self, linear: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.seen[linear].append((inputs[0], output))

    def forward(self, sample: Tensor, **_: Any) -> tuple[Tensor]:
        for linear in self.linears:
            if linear._forward_hooks or linear._forward_pre_hooks:
                x, output = self.seen[linear][int(sample.flatten()[0])]
                linear.forward = lambda _, output=output: output
                linear(x)
                del linear.forward
        return (sample,)


def played_blocks(model: Any, rows: list[dict[str, Any]]) -> list[Played]:
    blocks = [Played(block) for block in find_blocks(model).values()]
    hooks = [linear.register_forward_hook(block.record) for block in blocks for linear in block.linears]
    for row in rows:
        model.model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return blocks


# ------------------------------------------------------------------------------------------------------------ theirs


def without_gpu() -> None:
    """Lets code that is written for a GPU run on a CPU, if there is no GPU."""
    if torch.cuda.is_available():
        return
    move = torch.Tensor.to
    torch.Tensor.to = lambda x, *a, **k: move(x, *("cpu" if str(each) == "cuda:0" else each for each in a), **k)
    torch.Tensor.cuda = lambda x, *_, **__: x
    torch.cuda.synchronize = torch.cuda.empty_cache = lambda *_: None


def by_script(module: str, function: str) -> Callable[..., tuple[type, Callable[[], None]]]:
    """Their function for a whole model, which gets blocks that play back; and their class that sums up."""

    def prepare(blocks: list[Played], count: int) -> tuple[type, Callable[[], None]]:
        code = __import__(f"lib.{module}", fromlist=[module])
        samples = torch.arange(float(count)).view(count, 1, 1)
        code.get_loaders = lambda *_, **__: (None, None)
        code.prepare_calibration_input = lambda *_: (samples.clone(), samples.clone(), None, None)
        model = SimpleNamespace(
            config=SimpleNamespace(use_cache=False), model=SimpleNamespace(layers=blocks), hf_device_map={}, seqlen=0
        )
        settings = {"nsamples": count, "seed": 0, "seqlen": 0, "sparsity_ratio": SPARSITY, "model": "llama"}
        settings |= {"prune_method": "ria", "a": 0.5, "calib_dataset": "", "Hyper_m": 5, "Lamda": 0.08}
        off = ("use_variant", "reconstruction", "gptq", "per_outneuron", "semi_sparse_acc", "reallocation")
        args = SimpleNamespace(**settings, **dict.fromkeys(off, False))
        return code.WrappedGPT, lambda: getattr(code, function)(args, model, None, torch.device("cpu"))

    return prepare


def by_class(module: str, name: str, make: tuple[Any, ...], method: str) -> Callable[..., Any]:
    """Their class for one matrix, matrix by matrix."""

    def prepare(blocks: list[Played], count: int) -> tuple[type, Callable[[], None]]:
        code = __import__(module)
        if hasattr(code, "dev") and not torch.cuda.is_available():
            code.dev = "cpu"
        solver = getattr(code, name)

        def run() -> None:
            for block in blocks:
                for linear, seen in block.seen.items():
                    own = solver(linear, *make)
                    for x, output in seen:
                        own.add_batch(x, output)
                    getattr(own, method)(SPARSITY)
                    own.free()

        return solver, run

    return prepare


PEERS = {
    "wanda": by_script("prune", "prune_wanda"),
    "ria": by_script("prune", "prune_ria"),
    "owl": by_script("prune_all", "prune_wanda_outlier"),
    "sparsegpt": by_class("sparsegpt", "SparseGPT", (), "fasterprune"),
    "alps": by_class("alps", "ALPS_prune", (0, 0), "ALPS_admm"),
}


@contextmanager
def timed(kind: type, method: str) -> Iterator[list[float]]:
    """Seconds spent in a method."""
    plain, seconds = getattr(kind, method), [0.0]

    @wraps(plain)
    def counted(*args: Any) -> Any:
        start = time.perf_counter()
        try:
            return plain(*args)
        finally:
            seconds[0] += time.perf_counter() - start

    setattr(kind, method, counted)
    try:
        yield seconds
    finally:
        setattr(kind, method, plain)


def run_theirs(kind: type, prune: Callable[[], None]) -> tuple[float, float]:
    start = time.perf_counter()
    with timed(kind, "add_batch") as sums, redirect_stdout(io.StringIO()):
        prune()
    return sums[0], time.perf_counter() - start - sums[0]


# -------------------------------------------------------------------------------------------------------------- ours


def run_collector(collector: Any, blocks: list[Played], count: int) -> Any:
    with collector:
        collector.start(LANGUAGE)
        for sample in range(count):
            for block in blocks:
                block(torch.tensor(float(sample)))
    return collector.finish()


def grams_of(weights: list[Any], blocks: list[Played], count: int) -> dict[str, Tensor]:
    paths = sorted({weight.name.rpartition(".")[0].rpartition(".")[0] for weight in weights})
    groups = [
        [w for w in weights if w.name.startswith(f"{path}.") and w.name.rpartition(".")[2] in names]
        for path in paths
        for names in INPUTS
    ]
    found: dict[str, Tensor] = run_collector(GramCollector(groups, {LANGUAGE: 1.0}), blocks, count)
    return found


def run_ours(name: str, model: Any, blocks: list[Played], known: Any) -> tuple[float, float]:
    weights, count = flat(find_weights(find_blocks(model))), len(next(iter(blocks[0].seen.values())))
    config = MWandaConfig(**METHODS[name], sparsity=SPARSITY, **({} if known is None else {"calibration": "dense"}))
    start = time.perf_counter()
    if known is not None:
        run_collector(StatisticsCollector(weights, [LANGUAGE], []), blocks, count)
        sums = time.perf_counter()
        MWandaPruner(config, progress=False, restore_on_failure=False).apply(model, known)
    else:
        grams = grams_of(weights, blocks, count)
        sums = time.perf_counter()
        with sharing_inputs(given_away=grams.values()):
            for weight in weights:
                _, values = mask_and_values(weight, None, grams[weight.name], torch.ones(1), SPARSITY, config)
                weight.matrix.copy_(values)
    return sums - start, time.perf_counter() - sums


# ----------------------------------------------------------------------------------------------------------- compare


@torch.no_grad()
def main(name: str, code: str, source: str, file: str, threads: str, rounds: str) -> dict[str, Any]:
    disable_progress_bar()
    torch.set_num_threads(int(threads))
    sys.path.insert(0, code)
    without_gpu()
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    rows = [{**row, "language": LANGUAGE} for row in json.loads(Path(file).read_text(encoding="utf-8"))]
    blocks = played_blocks(model, rows)
    weights = flat(find_weights(find_blocks(model)))
    grams = grams_of(weights, blocks, len(rows))
    known = None
    if name not in ("sparsegpt", "alps"):
        settings = {"samples_per_language": len(rows), "sequence_length": len(rows[0]["input_ids"])}
        known = MWandaPruner(MWandaConfig(**METHODS[name], **settings), progress=False).calibrate(model, rows)
    dense = {key: value.clone() for key, value in model.state_dict().items()}
    kind, prune = PEERS[name](blocks, len(rows))

    def after(run: Callable[[], tuple[float, float]]) -> tuple[tuple[float, float], dict[str, Tensor]]:
        model.load_state_dict(dense)
        seconds = run()
        return seconds, {weight.name: weight.matrix.clone() for weight in weights}

    times: list[tuple[float, ...]] = []
    for _ in range(int(rounds) + 1):
        (their_sums, their_choice), theirs = after(lambda: run_theirs(kind, prune))
        (our_sums, our_choice), ours = after(lambda: run_ours(name, model, blocks, known))
        whole = (their_sums + their_choice) / (our_sums + our_choice)
        times.append((their_sums / our_sums, their_choice / our_choice, whole))
    model.load_state_dict(dense)
    same = sum(int(((theirs[w.name] == 0) == (ours[w.name] == 0)).sum()) for w in weights)
    errors = [
        layer_error(w.matrix - theirs[w.name], grams[w.name]) / layer_error(w.matrix - ours[w.name], grams[w.name])
        for w in weights
    ]
    sums, choice, whole = (statistics.median(each) for each in zip(*times[1:], strict=True))
    return {
        "sums": sums,
        "choice": choice,
        "whole": whole,
        "spread": (min(each[2] for each in times[1:]), max(each[2] for each in times[1:])),
        "same": same / sum(w.matrix.numel() for w in weights),
        "error": statistics.median(errors),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
