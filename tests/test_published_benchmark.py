"""The benchmark of published code, with stand-ins for it: what they are given, and what is said of them."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import make_model, make_rows

FOLDER = Path(__file__).parents[1] / "benchmarks"

SCRIPT = """
import torch
from torch import nn

class WrappedGPT:
    def __init__(self, layer):
        self.squares = torch.zeros(layer.in_features)

    def add_batch(self, x, output):
        assert output.shape[:-1] == x.shape[:-1]
        self.squares += x.flatten(0, -2).square().sum(0)

def prune_wanda(args, model, tokenizer, device):
    assert args.sparsity_ratio == 0.5
    samples, _, _, _ = prepare_calibration_input(model, get_loaders("c4")[0], device)
    for layer in model.model.layers:
        linears = [each for each in layer.modules() if type(each) is nn.Linear]
        wrapped = [WrappedGPT(each) for each in linears]
        hooks = [
            each.register_forward_hook(lambda _, x, y, own=own: own.add_batch(x[0], y))
            for each, own in zip(linears, wrapped)
        ]
        for sample in samples:
            layer(sample[None], attention_mask=None, position_ids=None)
        for hook in hooks:
            hook.remove()
        for each, own in zip(linears, wrapped):
            order = (each.weight.abs() * own.squares.sqrt()).argsort(dim=1, stable=True)
            each.weight.data.scatter_(1, order[:, : each.in_features // 2], 0)
"""

CLASS = """
class SparseGPT:
    def __init__(self, layer):
        self.layer, self.tokens = layer, 0

    def add_batch(self, x, output):
        self.tokens += x.shape[0] * x.shape[1]

    def fasterprune(self, sparsity):
        assert self.tokens == TOKENS
        weight = self.layer.weight.data
        weight[weight.abs() < weight.abs().quantile(sparsity)] = 0

    def free(self):
        self.layer = None
"""


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    module = importlib.import_module("published")
    monkeypatch.setattr(module, "without_gpu", lambda: None)  # it changes torch for good
    path = [*sys.path]
    yield module
    sys.path[:] = path
    for name in {"lib", "lib.prune", "sparsegpt", "published"} - before:
        sys.modules.pop(name, None)


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A model, rows of text, threads and rounds."""
    make_model().save_pretrained(tmp_path / "model")
    rows = make_rows(rows=1, length=16)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "prune.py").write_text(SCRIPT)
    (tmp_path / "sparsegpt.py").write_text(CLASS.replace("TOKENS", str(16 * len(rows))))
    return [str(tmp_path), str(tmp_path / "model"), str(tmp_path / "rows.json"), "1", "1"]


def test_a_script_gets_what_entered_the_matrices(published: ModuleType, words: list[str]) -> None:
    found = published.main("wanda", *words)
    assert found["same"] == 1
    assert found["error"] == pytest.approx(1)
    assert min(found["sums"], found["choice"], found["whole"]) > 0
    assert found["spread"][0] <= found["whole"] <= found["spread"][1]


def test_a_class_gets_what_entered_each_matrix(published: ModuleType, words: list[str]) -> None:
    found = published.main("sparsegpt", *words)
    assert 0.5 < found["same"] < 1
    assert found["error"] > 1  # of magnitude, beside ours
    assert found["whole"] > 0


def test_peers_that_nobody_knows_are_named(published: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["speed.py", "--peers", "gptq=somewhere", "--folder", "nowhere"])
    with pytest.raises(SystemExit, match="gptq is not known: known are alps, llm-compressor, owl"):
        importlib.import_module("speed").main()
