"""The table of what quantization keeps, made with the reference schemes, which need no tool."""

import importlib
import importlib.metadata
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from optimum_mwanda import MWandaConfig, MWandaPruner
from tests.conftest import make_model
from tests.forked import python

INTEGRATION = Path(__file__).parents[2] / "integrations" / "quantization"
LANGUAGES = ("en", "ta")


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the integration by name."""
    monkeypatch.syspath_prepend(str(INTEGRATION))
    return importlib.import_module


@pytest.fixture
def rows(sample_rows: dict[str, list[dict[str, str]]]) -> list[dict[str, str]]:
    return [row for language in LANGUAGES for row in sample_rows["evaluation"] if row["language"] == language][::4]


@pytest.fixture
def pruned(sample_model: PreTrainedModel) -> PreTrainedModel:
    config = MWandaConfig(sparsity=0.5, criterion="magnitude", allocation="uniform")
    MWandaPruner(config, progress=False).prune(sample_model)
    return sample_model


@pytest.fixture
def source(scripts: Any, pruned: PreTrainedModel, sample_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Any:
    pruned.save_pretrained(tmp_path / "pruned")
    masks = scripts("zeros_kept").linear_masks(pruned)
    return scripts("source").Source(tmp_path / "pruned", masks, sample_tokenizer, [], tmp_path)


def cells(table: str) -> dict[str, list[str]]:
    """Scheme to the other cells of its row."""
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return {row[1]: row[2:] for row in found[2:]}


def test_script_prunes_the_sample_and_writes_the_table(rows: list[dict[str, str]], tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    words = ["--calibration", text, "--evaluation", text, "--tools", "reference", "--output", tmp_path / "table.md"]
    script = [python(), INTEGRATION / "zeros_kept.py", *words]
    done = subprocess.run([*map(str, script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert table.strip() in done.stdout
    found = cells(table)
    assert found["pruned, bfloat16"] == ["100.00 %", "16.00", "1.0000", "1.0000", ""]
    assert found["int8 symmetric, rows"][:2] == ["100.00 %", "8.08"]
    assert found["int4 symmetric"][:2] == ["100.00 %", "4.50"]
    assert found["int4 asymmetric, integer zero point"][:2] == ["100.00 %", "4.75"]
    lost, bits, *_, worst = found["int4 asymmetric, float offset"]
    assert float(lost.removesuffix(" %")) < 20
    assert bits == "5.00"
    assert worst in LANGUAGES
    assert f"torch {importlib.metadata.version('torch')}" in table  # without what it was built for, as in 2.13.0+cu130


def test_tools_that_are_missing_or_fail_are_lines_below_the_table(
    scripts: Any, source: Any, pruned: PreTrainedModel, rows: list[dict[str, str]]
) -> None:
    def fail(_: Any) -> None:
        raise RuntimeError("no kernel\nfor this machine")

    scheme = scripts("source").Scheme
    schemes = [
        scheme("absent", "int8", ("no-such-package",), fail),
        scheme("broken", "int4", ("torch",), fail),
        scheme("idle", "nothing", ("torch",), type(source).load),
    ]
    table = scripts("zeros_kept").measure(source, pruned, schemes, rows, 64)
    assert "- Not installed: absent (needs no-such-package)." in table
    assert "- Failed: broken, int4: `RuntimeError: no kernel`" in table
    assert cells(table)["nothing"][:4] == ["100.00 %", "32.00", "1.0000", "1.0000"]


def test_zeros_are_counted_at_pruned_places_only(scripts: Any, source: Any, pruned: PreTrainedModel) -> None:
    name, mask = next(iter(source.masks.items()))
    weight = pruned.get_submodule(name).weight.data
    weight[~mask] = 0
    weight[mask] = torch.where(torch.arange(int(mask.sum())) % 4 == 0, 1.0, 0.0)
    one = type(source)(source.folder, {name: mask}, source.tokenizer, [], source.scratch)
    assert scripts("zeros_kept").read(pruned, one, scripts("source").Scheme("", "", (), fail_never)) == (
        "75.00 %",
        "32.00",
    )


def fail_never(source: Any) -> Any:
    return source


def test_matrix_is_read_exactly_and_the_bias_stays(scripts: Any, pruned: PreTrainedModel) -> None:
    layer = pruned.model.layers[0].mlp.up_proj
    bias = layer.bias = nn.Parameter(torch.full((448,), 1e6))
    matrix = scripts("reading").response_to_identity(pruned, "model.layers.0.mlp.up_proj", 160)
    assert torch.equal(matrix, layer.weight)
    assert layer.bias is bias
    assert scripts("reading").bytes_in_memory(pruned, "model.layers.0.mlp.up_proj") == 4 * 448 * 160


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zero", ["SYMMETRIC", "INTEGER", "FLOAT"])
def test_rounding_is_within_half_a_level(scripts: Any, zero: str, bits: int) -> None:
    rounding = scripts("rounding")
    torch.manual_seed(0)
    linear = nn.Linear(32, 8)
    linear.weight.data[:, ::3] = 0
    linear.weight.data[0] = 0  # a group without a scale
    linear.weight.data[1] = linear.weight.data[1].abs() + 1  # a group on one side of zero
    layer = rounding.RoundedLinear(linear, bits, getattr(rounding, zero), 16)
    error = (layer.weight() - linear.weight).abs().reshape(8, 2, 16)
    # An integer zero point is rounded too, so the ends of the range may be cut by half a level more.
    assert (error <= layer.scale * (1.01 if zero == "INTEGER" else 0.51)).all()
    assert torch.equal(layer.weight()[0], linear.weight[0])
    hidden = torch.randn(3, 32)
    assert torch.equal(layer(hidden), nn.functional.linear(hidden, layer.weight(), linear.bias))


def test_matrices_that_no_tool_quantizes_are_named(scripts: Any) -> None:
    model = make_model("gpt2")
    MWandaPruner(MWandaConfig(sparsity=0.5, criterion="magnitude", allocation="uniform"), progress=False).prune(model)
    with pytest.raises(ValueError, match=r"'transformer\.h\.0\.attn\.c_attn' is pruned but is not an nn\.Linear"):
        scripts("zeros_kept").linear_masks(model)
