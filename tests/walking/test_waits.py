"""How often calibration and pruning wait for a GPU: no number of batches, and few times per weight.

Whatever needs the values of a tensor in Python waits for all that the GPU has to do before. The calls are counted, so
no GPU is needed; some of those below read tensors that are on the CPU anyway, which is said beside them.
"""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

import optimum_mwanda
from optimum_mwanda import MWandaConfig, MWandaPruner
from optimum_mwanda.modeling import bits
from optimum_mwanda.pruning import masks
from optimum_mwanda.walking import editor
from tests.conftest import make_model, make_rows

PACKAGE = Path(optimum_mwanda.__file__).parent
TORCH = Path(torch.__file__).parent
LANGUAGES = 2
# Not `numpy`, which refuses tensors of a GPU and so never waits for it.
READS = {"cpu", "item", "tolist", "nonzero", "equal", "masked_select"} | {
    f"__{kind}__" for kind in ("bool", "int", "float", "index")
}


class Waits(TorchFunctionMode):
    """Counts by module of the package what reads values, or moves them to another device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _waits(function.__name__, args, kwargs or {}):
            frame = sys._getframe(1)
            while frame.f_back is not None and TORCH in Path(frame.f_code.co_filename).parents:
                frame = frame.f_back
            path = Path(frame.f_code.co_filename)
            if PACKAGE in path.parents:  # and not what the model itself does
                self.found[".".join(path.relative_to(PACKAGE).with_suffix("").parts)] += 1
        return function(*args, **(kwargs or {}))


def _waits(name: str, args: Any, kwargs: Any) -> bool:
    if name == "to":
        return "device" in kwargs or any(isinstance(each, (str, torch.device)) for each in args[1:])
    if name == "where":
        return len(args) == 1
    if name in ("__getitem__", "__setitem__"):
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return any(torch.is_tensor(each) and each.dtype in (torch.bool, torch.uint8) for each in index)
    return name in READS


def pruner(**settings: Any) -> MWandaPruner:
    sizes: dict[str, Any] = {"samples_per_language": 8, "sequence_length": 16, "allocation": "uniform"}
    return MWandaPruner(MWandaConfig(**{**sizes, **settings}), progress=False)


def count(work: Callable[[], object]) -> Counter[str]:
    with Waits() as waits:
        work()
    return waits.found


def weights(model: Any) -> int:
    return sum(1 for name, _ in model.named_parameters() if "_proj." in name)


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return make_rows("en sw", rows=8, length=16)


def test_calibration_does_not_wait_for_a_batch(rows: list[dict[str, Any]]) -> None:
    model = make_model()
    few, many = (count(lambda size=size: pruner(batch_size=size).calibrate(model, rows)) for size in (8, 1))
    batches = 7 * LANGUAGES  # more of them
    assert many.pop("modeling.blocks") - few.pop("modeling.blocks") == batches  # tokens go to the device
    assert many == few
    # Once per language for all sums; per weight, its sums to the CPU, and its tokens, which are there already.
    assert few["calibration.collector"] == LANGUAGES + 2 * weights(model)


def test_pruning_waits_a_few_times_per_weight(rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editor, "marked", bits._marked_on_device)  # as on a GPU, and so is the next line
    monkeypatch.setattr(masks, "_is_for_numpy", lambda scores: False)
    model = make_model()
    statistics = pruner().calibrate(model, rows)
    plan = pruner().allocate(model, statistics)
    found = count(lambda: pruner().apply(model, statistics, plan))
    per_weight = {
        "modeling.weights": 1,  # is it finite?
        "pruning.scoring": 1,  # which languages reached it, on the CPU
        "pruning.criteria": 1,  # the norms of its inputs to the device
        "pruning.masks": 1,  # are there ties?
        "walking.walk": 1,  # its mask, which was on the CPU until all were known
        "modeling.bits": 1,  # what is removed
        "modeling.host_memory": 2,  # its mask and that to the CPU
        "modeling.counting": 1,  # its zeros
    }
    assert {name: found[name] // weights(model) for name in per_weight} == per_weight
    of_modeling = ("bits", "weights", "counting", "host_memory")
    in_loops = ("calibration", "walking", "pruning", *(f"modeling.{name}" for name in of_modeling))
    assert {name for name in found if name.startswith(in_loops)} == set(per_weight)


def test_training_waits_once_per_epoch(rows: list[dict[str, Any]]) -> None:
    def found(epochs: int, batch: int) -> Counter[str]:
        settings = {"reconstruction": "block", "reconstruction_epochs": epochs, "reconstruction_batch_size": batch}
        found = count(lambda: pruner(**settings).prune(make_model(), rows))
        del found["pruning.tuning"]  # Adam counts its steps on the CPU
        return found

    one, two, larger = found(1, 1), found(2, 1), found(1, 4)
    assert two - one == {"walking.block_training": len(make_model().model.layers)}  # of the errors that judge it
    assert one["walking.block_training"] == larger["walking.block_training"]  # however many steps it takes


def test_a_round_of_swaps_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from optimum_mwanda.pruning import swaps
    from optimum_mwanda.pruning.refinement import refine_mask

    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(64, 32, generator=generator), torch.randn(16, 32, generator=generator)
    pruned = weight.abs() < weight.abs().median(1, keepdim=True).values
    on_a_cpu = refine_mask(weight, pruned, x.T @ x)
    assert not swaps._is_over(torch.zeros(2, 1, dtype=torch.bool, device="meta"))  # only a CPU is asked
    monkeypatch.setattr(swaps, "_is_over", lambda made: False)
    assert torch.equal(refine_mask(weight, pruned, x.T @ x), on_a_cpu)
    one, two = (count(lambda n=n: refine_mask(weight, pruned, x.T @ x, rounds=n)) for n in (1, 2))
    assert sum((two - one).values()) == 1
    assert not torch.equal(*(refine_mask(weight, pruned, x.T @ x, rounds=n) for n in (1, 2)))  # there was a second one


def test_a_large_matrix_waits_for_its_ties_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randint(4, (32, 16), generator=torch.Generator().manual_seed(0)).float()  # full of ties
    whole = masks.prune_lowest(scores, 5)
    monkeypatch.setattr(masks, "_ENTRIES", 64)  # eight parts
    found = count(lambda: masks._prune_lowest_on_device(scores, 5))
    assert found == {"pruning.masks": 1}
    assert torch.equal(masks._prune_lowest_on_device(scores, 5), whole)
    assert (whole.sum(1) == 5).all()
