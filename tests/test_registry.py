"""What is registered is legal, does what it says, and is refused where it cannot work."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from optimum_mwanda import MWandaConfig, MWandaPruner, register_allocation, register_criterion
from optimum_mwanda.modeling.blocks import find_blocks
from optimum_mwanda.modeling.weights import find_weights
from optimum_mwanda.pruning.reconstruction import sparsegpt
from optimum_mwanda.pruning.selection import select
from optimum_mwanda.registry import ALLOCATIONS, CRITERIA
from optimum_mwanda.sharing.model_card import create_card
from tests.conftest import assert_untouched, make_model, make_rows, state_of

ROWS = make_rows(rows=3, length=32)
DOCS = Path(__file__).parents[1] / "docs"


def pruner(**values: object) -> MWandaPruner:
    return MWandaPruner(MWandaConfig(sequence_length=32, **values), progress=False)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """Takes back what a test registers."""
    before = [dict(CRITERIA), dict(ALLOCATIONS)]
    yield
    for registry, names in zip((CRITERIA, ALLOCATIONS), before, strict=True):
        registry.clear()
        registry.update(names)


def ones(weight: Tensor, *_: Any) -> Tensor:
    return torch.ones_like(weight)


def test_the_package_has_these_in_this_order() -> None:
    assert list(CRITERIA) == ["magnitude", "wanda", "ria", "mwanda", "sparsegpt", "alps"]
    assert list(ALLOCATIONS) == ["uniform", "owl", "outliers", "cwl", "dlp", "alpha"]
    assert [name for name, criterion in CRITERIA.items() if criterion.updates] == ["sparsegpt", "alps"]


def test_the_docs_name_them_all() -> None:
    method, guide = ((DOCS / name).read_text(encoding="utf-8") for name in ("method.md", "guide.md"))
    (row,) = (line for line in guide.splitlines() if line.startswith("| `allocation`"))
    assert re.findall("`(\\w+)`", row.split("|")[2]) == list(ALLOCATIONS)
    assert all(f"| `{name}`" in method for name in CRITERIA)


def test_names_are_known_without_torch() -> None:
    code = "import sys, optimum_mwanda as o; o.register_criterion('mine', print); from optimum_mwanda import registry; "
    code += "print('torch' in sys.modules, 'mine' in registry.CRITERIA)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "True"]


@pytest.mark.parametrize(
    ("register", "error", "message"),
    [
        (lambda: register_criterion("wanda", ones), ValueError, "The criterion 'wanda' already exists"),
        (lambda: register_criterion("alps", ones), ValueError, "The criterion 'alps' already exists"),
        (lambda: register_allocation("uniform", ones), ValueError, "The allocation 'uniform' already exists"),
        (lambda: [register_criterion("mine", ones) for _ in "12"], ValueError, "The criterion 'mine' already exists"),
        (
            lambda: [register_allocation("mine", ones) for _ in "12"],
            ValueError,
            "The allocation 'mine' already exists",
        ),
        (lambda: register_criterion("", ones), ValueError, "name of the criterion"),
        (lambda: register_criterion(7, ones), ValueError, "name of the criterion"),  # type: ignore[arg-type]
        (lambda: register_criterion("mine", "wanda"), TypeError, "score='wanda' is not"),  # type: ignore[arg-type]
        (lambda: register_criterion("mine", solve=1), TypeError, "solve=1 is not"),  # type: ignore[arg-type]
        (lambda: register_criterion("mine"), TypeError, "either score or solve"),
        (lambda: register_criterion("mine", ones, solve=ones), TypeError, "either score or solve"),
        (lambda: register_criterion("mine", ones, fallback="none"), ValueError, "fall back to 'none'"),
        (lambda: register_criterion("mine", ones, damping=-1), ValueError, "damping=-1"),
        (lambda: register_allocation("mine", None), TypeError, "importance=None is not"),  # type: ignore[arg-type]
        (lambda: register_allocation("mine", ones, spread=3), TypeError, "spread=3 is not"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_registered_is_refused(
    register: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        register()
    assert "mine" not in CRITERIA or "already" in message


def test_a_score_of_ones_own_decides_what_goes() -> None:
    def smallest_first_column(
        weight: Tensor, statistics: Any, language_weights: Tensor, config: MWandaConfig
    ) -> Tensor:
        assert statistics.mean_square.shape == (3, weight.shape[1])
        assert language_weights.tolist() == pytest.approx([0.25, 0.25, 0.5])
        assert config.criterion == "columns"
        return torch.arange(weight.shape[1], dtype=torch.float32).expand(weight.shape)

    register_criterion("columns", smallest_first_column)
    model = make_model()
    config = {"criterion": "columns", "allocation": "uniform", "group": "row", "language_weights": {"sw": 2.0}}
    pruner(**config).prune(model, ROWS)
    for found in find_weights(find_blocks(model)).values():
        for weight in found:
            assert (weight.matrix == 0).any(0).tolist() == [
                2 * i < weight.in_features for i in range(weight.in_features)
            ]
    assert "ranked with the `columns` score" in create_card(model.config.mwanda_config).text


def test_a_score_without_data_needs_no_text() -> None:
    def signed(weight: Tensor, statistics: None, language_weights: None, config: MWandaConfig) -> Tensor:
        assert statistics is None
        assert language_weights is None
        return weight

    register_criterion("signed", signed, needs_data=False)
    config = pruner(criterion="signed", allocation="uniform").config
    assert not config.needs_statistics
    model = make_model()
    pruner(criterion="signed", group="matrix", allocation="uniform").prune(model)
    weight = model.model.layers[0].mlp.up_proj.weight
    assert weight.max() > 0 >= weight.median()
    assert weight.min() == 0
    pruner(criterion="signed", allocation="owl").prune(
        make_model(), ROWS
    )  # there are statistics, which it does not get


def test_a_score_may_read_the_activity_that_it_asks_for() -> None:
    def active(weight: Tensor, statistics: Any, language_weights: Tensor, config: MWandaConfig) -> Tensor:
        return statistics.active[config.activity].sum(0).float().expand(weight.shape)

    register_criterion("active", active, uses_activity=True)
    assert pruner(criterion="active", activation="positive").config.activity == "positive"
    pruner(criterion="active", activation="positive").prune(make_model(), ROWS)


def test_a_solver_of_ones_own_chooses_masks_and_values() -> None:
    def halve(weight: Tensor, gram: Tensor, sparsity: float, config: MWandaConfig) -> tuple[Tensor, Tensor]:
        assert gram.shape == (weight.shape[1], weight.shape[1])
        pruned = select(weight.abs() * gram.diagonal().sqrt(), sparsity, config)
        return pruned, (weight / 2).masked_fill(pruned, 0)

    register_criterion("halve", solve=halve, damping=0.25)
    model, dense = make_model(), make_model().state_dict()
    config = pruner(criterion="halve", allocation="uniform").config
    assert (config.damping, config.reconstruction, config.calibration) == (0.25, "obs", "sequential")
    pruner(criterion="halve", allocation="uniform").prune(model, ROWS)
    name = "model.layers.1.mlp.down_proj.weight"
    weight = model.state_dict()[name]
    assert torch.equal(weight, (dense[name] / 2).where(weight != 0, 0.0))
    assert 0.45 < (weight == 0).float().mean() < 0.55


def test_a_solver_of_ones_own_may_read_the_gram_matrix_behind_sparsegpt() -> None:
    def sweep(weight: Tensor, gram: Tensor, sparsity: float, config: MWandaConfig) -> tuple[Tensor, Tensor]:
        before = gram.clone()
        values, pruned = sparsegpt(weight, gram, lambda scores, _: select(scores, sparsity, config))
        assert torch.equal(gram, before)
        return pruned, values

    register_criterion("sweep", solve=sweep, damping=0.01)
    own, usual = make_model(), make_model()
    pruner(criterion="sweep", allocation="uniform", group="row").prune(own, ROWS)
    pruner(criterion="sparsegpt", allocation="uniform", group="row").prune(usual, ROWS)
    assert all(torch.equal(value, usual.state_dict()[name]) for name, value in own.state_dict().items())


def test_an_allocation_of_ones_own_decides_how_sparse_blocks_become() -> None:
    def depth(weights: Any, statistics: None, language_weights: None, config: MWandaConfig) -> float | None:
        number = int(weights[0].block.rpartition(".")[2])
        return None if number == 1 else torch.tensor(float(number))  # type: ignore[return-value]

    register_allocation("depth", depth, needs_data=False)
    plan = pruner(criterion="magnitude", allocation="depth", allocation_strength=0.1).allocate(make_model())
    assert [block.sparsity for block in plan.blocks] == pytest.approx([0.6, 0.5, 0.4])
    assert [block.importance for block in plan.blocks] == [0.0, None, 2.0]


def test_an_allocation_may_share_out_in_its_own_way() -> None:
    def spread(importance: Any, sizes: Any, target: float, strength: float, bounds: Any) -> list[float]:
        assert (len(sizes), target, strength, bounds) == (3, 0.5, 0.04, (0.0, 0.95))
        return list(importance)

    register_allocation("as given", lambda weights, *_: 0.25, spread=spread, needs_data=False)
    plan = pruner(criterion="magnitude", allocation="as given").allocate(make_model())
    assert [block.sparsity for block in plan.blocks] == [0.25] * 3


def test_an_allocation_that_compares_languages_asks_for_two() -> None:
    register_allocation("compared", lambda *_: 1.0, compares_languages=True)
    with pytest.raises(ValueError, match="allocation='compared' compares languages, but there is only 'en'"):
        pruner(allocation="compared", languages=["en"]).prune(make_model(), ROWS)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda weight: weight[0], "another shape"),
        (lambda weight: weight.T[:, :1], "another shape"),
        (lambda weight: weight * float("nan"), "NaN"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused_and_the_model_stays(
    result: Callable[[Tensor], Tensor], message: str
) -> None:
    register_criterion("broken", lambda weight, *_: result(weight))
    model = make_model()
    before = state_of(model)
    with pytest.raises(ValueError, match=f"criterion 'broken'.*{message}"):
        pruner(criterion="broken").prune(model, ROWS)
    assert_untouched(model, before)


@pytest.mark.parametrize("solve", [lambda w, *_: (w > 0, w), lambda w, *_: (w[0] > 0, w), lambda w, *_: (w > 0, w[0])])
def test_masks_and_values_that_do_not_fit_are_refused_and_the_model_stays(solve: Callable[..., Any]) -> None:
    register_criterion("broken", solve=solve)
    model = make_model()
    before = state_of(model)
    with pytest.raises(ValueError, match="criterion 'broken' must give a mask and values"):
        pruner(criterion="broken").prune(model, ROWS)
    assert_untouched(model, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_importance_that_cannot_be_compared_is_refused(value: float) -> None:
    register_allocation("broken", lambda *_: value)
    with pytest.raises(ValueError, match="allocation 'broken' must give a finite importance"):
        pruner(allocation="broken").prune(make_model(), ROWS)


@pytest.mark.parametrize(
    ("settings", "function"),
    [({"criterion": "mine"}, "register_criterion"), ({"allocation": "mine"}, "register_allocation")],
)
def test_settings_that_name_what_is_not_registered_say_what_to_do(
    settings: dict[str, Any], function: str, tmp_path: Path
) -> None:
    register_criterion("mine", ones)
    register_allocation("mine", lambda *_: 1.0)
    config = MWandaConfig(**settings)
    config.save_pretrained(tmp_path)
    assert MWandaConfig.from_pretrained(tmp_path) == config
    del CRITERIA["mine"], ALLOCATIONS["mine"]
    with pytest.raises(ValueError, match=f"='mine' is not known.*register it first with {function}"):
        MWandaConfig.from_pretrained(tmp_path)
