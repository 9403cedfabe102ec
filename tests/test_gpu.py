"""On a GPU, models are pruned as on a CPU: the same weights go, but for near-ties."""

import warnings
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from optimum_mwanda import MWandaConfig, MWandaPruner, prune_checkpoint
from optimum_mwanda.calibration.collector import reduce_channels
from optimum_mwanda.calibration.gram import add_products, new_strips, to_matrix
from optimum_mwanda.modeling.blocks import find_blocks
from optimum_mwanda.modeling.host_memory import to_host
from optimum_mwanda.modeling.weights import find_weights
from tests.conftest import make_rows
from tests.families.matrix import FAMILIES

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that torch can use")

CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "terms": {"variance": "std", "activation": "above_rms"},
    "2:4": {"allocation": "uniform", "pattern": "2:4"},
    "whole matrices": {"group": "matrix"},
    "swap": {"refinement": "swap"},
    "fisher swap": {"refinement": "swap", "sensitivity": "fisher"},
    "obs": {"reconstruction": "obs"},
    "trained blocks": {"reconstruction": "obs+block", "sensitivity": "fisher", "reconstruction_epochs": 1},
    "sparsegpt": {"criterion": "sparsegpt"},
    "alps": {"criterion": "alps"},
}
FAMILY_NAMES = ("llama", "gemma3_text", "mixtral", "t5")
REFUSED = {(name, "mixtral") for name, settings in CASES.items() if "sensitivity" in settings}
DECIDE_LATER = {"obs", "trained blocks", "sparsegpt", "alps"}
"""Those of which later blocks see what the earlier ones became, so that differences grow."""


def pruner(**settings: Any) -> MWandaPruner:
    sizes = {"samples_per_language": 4, "sequence_length": 24, "batch_size": 2}
    return MWandaPruner(MWandaConfig(**{**sizes, **settings}), progress=False)


def zeros(model: Any) -> Tensor:
    found = find_weights(find_blocks(model))
    return torch.cat([(w.matrix == 0).flatten().cpu() for weights in found.values() for w in weights])


def on(device: str, model: Any) -> Any:
    return model.to(device)


def rows() -> list[dict[str, Any]]:
    return make_rows("en fr sw", rows=4, length=24)


@pytest.mark.parametrize(("name", "family"), [each for each in product(CASES, FAMILY_NAMES) if each not in REFUSED])
def test_the_same_weights_go(name: str, family: str) -> None:
    found: dict[str, Tensor] = {}
    for device in ("cpu", DEVICE, DEVICE):
        model = on(device, FAMILIES[family].make())
        pruned = zeros(pruner(**CASES[name]).prune(model, FAMILIES[family].rows()))
        assert {parameter.device.type for parameter in model.parameters()} == {device}
        if device in found and device != "cpu":
            assert torch.equal(found[device], pruned)  # run after run
        found[device] = pruned
    differ = int((found["cpu"] != found[DEVICE]).sum())
    print(f"{family}, {name}: {differ} of {len(found['cpu'])} weights differ")
    assert found["cpu"].any()
    assert differ <= (0.02 if name in DECIDE_LATER else 0.002) * len(found["cpu"])


@pytest.mark.parametrize("name", [name for name, settings in CASES.items() if "sensitivity" not in settings])
def test_a_checkpoint_is_pruned_as_in_memory(name: str, tmp_path: Path) -> None:
    model = FAMILIES["llama"].make()
    model.save_pretrained(tmp_path / "dense")
    config = pruner(**CASES[name]).config
    prune_checkpoint(tmp_path / "dense", tmp_path / "pruned", config, rows(), device=DEVICE, progress=False)
    pruner(**CASES[name]).prune(on(DEVICE, model), rows())
    streamed = type(model).from_pretrained(tmp_path / "pruned")
    differ = [
        key for key, value in model.state_dict().items() if not torch.equal(value.cpu(), streamed.state_dict()[key])
    ]
    assert differ == []


@pytest.mark.parametrize(
    ("dtype", "tokens", "error"),  # products of 16-bit numbers cut bits off
    [(torch.float32, 3000, 1e-6), (torch.bfloat16, 9000, 5e-6), (torch.float16, 9000, 2e-5)],
)
def test_sums_are_those_of_float64(dtype: torch.dtype, tokens: int, error: float) -> None:
    x = torch.randn(tokens, 520, generator=torch.Generator().manual_seed(0)).to(dtype)
    strips = [strip.zero_() for strip in new_strips(520, torch.device(DEVICE))]
    for part in torch.split(x.to(DEVICE), tokens // 2):
        add_products(strips, part)
    gram = to_matrix(strips)
    exact = x.double().T @ x.double()
    assert (gram.cpu().double() - exact).norm() < error * exact.norm()
    found, expected = (reduce_channels(each, ["positive", "above_rms>0.5"]) for each in (x.to(DEVICE), x))
    torch.testing.assert_close(found["square_sum"].cpu(), expected["square_sum"], rtol=1e-6, atol=0)
    assert torch.equal(found["positive"].cpu(), expected["positive"])
    assert (found["above_rms>0.5"].cpu() - expected["above_rms>0.5"]).abs().max() <= 1


@pytest.mark.parametrize("name", ["sparsegpt", "trained blocks"])
def test_hidden_states_may_lie_in_host_memory(name: str) -> None:
    for_all = {"samples_per_language": 4, "sequence_length": 24, "batch_size": 2, **CASES[name]}
    found = []
    for place in ("device", "cpu"):
        model = on(DEVICE, FAMILIES["llama"].make())
        MWandaPruner(MWandaConfig(**for_all), progress=False, activations=place).prune(model, rows())
        found.append(model.state_dict())
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_copies_in_host_memory_are_exact() -> None:
    for shape in ((3, 1), (700, 3000), (5, 900, 1100), (20_000_000,)):
        values = torch.randn(shape, device=DEVICE)
        assert torch.equal(to_host(values), values.cpu())
        assert torch.equal(to_host(values.movedim(0, -1)), values.cpu().movedim(0, -1))
        assert to_host(values, copy=True).device.type == "cpu"


def test_no_batch_waits_for_the_gpu() -> None:
    model = on(DEVICE, FAMILIES["llama"].make())
    few, many = (waits(partial(pruner(batch_size=size).calibrate, model, rows())) for size in (4, 1))
    batches = 3 * 3  # more of them
    assert many - few <= 2 * batches  # tokens and their mask go there


def waits(work: Callable[[], object]) -> int:
    """How often torch says that something waits for the GPU."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchron" in str(each.message) for each in found)
