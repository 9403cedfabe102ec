"""What is compared: named settings, and the sparsities and patterns at which they are measured."""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...configuration import MWandaConfig
from ...presets import METHODS, PRESETS
from ...registry import ALLOCATIONS
from ...values import is_close

if TYPE_CHECKING:
    from ...pruning.sparsity_plan import SparsityPlan

Methods = Mapping[str, Mapping[str, Any]]
"""Name to settings of `MWandaConfig`, in the order of the tables."""

SPARSITIES = (0.5, 0.6, 0.7)
BY_THE_PLAN = ("sparsity", "pattern", "languages", "samples_per_language", "sequence_length", "seed")
"""Settings that the comparison itself sets, in the same way for every method."""

OF_THE_TEXT = ("bos", "reservoir", "calibration_tolerance")
"""Settings of the calibration, which methods share: the plan may set them for all."""

PLAN = "plan"
"""What a method may name beside settings: a file with a plan, or several. At other sparsities it is left out."""

OF_THE_ALLOCATION = ("allocation", "allocation_strength", "owl_multiplier", "cwl_direction")
"""Settings that say nothing where an N:M pattern fixes the sparsity of every block."""

BASES: dict[str, dict[str, Any]] = {name: METHODS[name] for name in ("wanda", "ria")}
"""Each score in its published group. Outside the grid `published` all methods read the text in one way: languages weigh
the same, and one calibration of the dense model serves all methods that do not look block by block."""

NO_TERMS: dict[str, Any] = {"criterion": "mwanda", "variance": "none", "activation": "none"}
TERMS: dict[str, dict[str, Any]] = {
    "variance": {"variance": "std", "variance_weight": 0.5},
    "activation": {"activation": "above_rms", "activation_exponent": 0.5},
    "cwl": {"allocation": "cwl"},
}
FORMS: dict[str, dict[str, Any]] = {
    "std 2": {"variance": "std", "variance_weight": 2.0},
    "variance 0.5": {"variance": "variance", "variance_weight": 0.5},
    "relative variance 0.5": {"variance": "relative_variance", "variance_weight": 0.5},
    "positive ^0.5": {"activation": "positive", "activation_exponent": 0.5},
}
STRENGTHS = (0.04, 0.08, 0.15)
LAYERWISE = tuple(name for name in ALLOCATIONS if name != "uniform")


@dataclasses.dataclass(frozen=True)
class GridPreset:
    """A ready-made grid.

    Attributes:
        methods: What is compared.
        sparsities: Sparsities, unless others are asked for.
        patterns: N:M patterns, unless others are asked for.
    """

    methods: Methods
    sparsities: Sequence[float] = SPARSITIES
    patterns: Sequence[str] = ()


def _with_terms(base: str, terms: Sequence[str]) -> dict[str, Any]:
    """The settings of a base with some of the terms of M-Wanda."""
    settings = {**BASES[base], **NO_TERMS, "base": base}
    for term in terms:
        settings |= TERMS[term]
    return settings


def _ablation() -> dict[str, dict[str, Any]]:
    """Every subset of the terms on both bases; the empty subset is the base itself."""
    methods = {}
    for base, count in itertools.product(BASES, range(len(TERMS) + 1)):
        for terms in itertools.combinations(TERMS, count):
            methods[" + ".join([base, *terms])] = _with_terms(base, terms) if terms else BASES[base]
    return methods


def _forms() -> dict[str, dict[str, Any]]:
    """The other forms of the terms, each alone on both bases."""
    return {f"{base} + {form}": _with_terms(base, ()) | FORMS[form] for base in BASES for form in FORMS}


def _allocations() -> dict[str, dict[str, Any]]:
    """Every allocation at several strengths on both bases."""
    strengths = {
        f"{base} + {rule} {strength:g}": {**BASES[base], "allocation": rule, "allocation_strength": strength}
        for base, rule, strength in itertools.product(BASES, LAYERWISE, STRENGTHS)
    }
    specific = {
        f"{base} + cwl specific": {**BASES[base], "allocation": "cwl", "cwl_direction": "specific"} for base in BASES
    }
    return {**BASES, **strengths, **specific}


BASELINES: dict[str, dict[str, Any]] = {
    "magnitude": {**METHODS["magnitude"], "group": "row"},
    **BASES,
    "wanda + owl": METHODS["owl"],
    "wanda + dlp": METHODS["dlp"],
    "wanda + alpha": METHODS["alphapruning"],
    "sparsegpt": METHODS["sparsegpt"],
}
"""Published methods; the weights that magnitude compares are those of a row, as with Wanda."""

_ON_WANDA: dict[str, Any] = {"base": "wanda", "variance": "std", "group": "row", "allocation": "owl"}
_ON_RIA: dict[str, Any] = {"base": "ria", "variance": "std", "group": "matrix", "allocation": "owl"}
_ALPS: dict[str, Any] = {**METHODS["alps"], "damping": 0.1}

BEST: dict[str, dict[str, Any]] = {
    "defaults": {},
    "defaults + swap": {"refinement": "swap"},
    "defaults + obs": {"reconstruction": "obs"},
    "m-wanda on wanda": _ON_WANDA,
    "m-wanda on wanda, tuned": {**_ON_WANDA, "allocation_strength": 0.06, "owl_multiplier": 16.0},
    "m-wanda on wanda + swap": {**_ON_WANDA, "refinement": "swap"},
    "m-wanda on ria": _ON_RIA,
    "m-wanda on ria + swap": {**_ON_RIA, "refinement": "swap"},
    "m-wanda on ria + obs": {**_ON_RIA, "reconstruction": "obs"},
    "alps": _ALPS,
    "alps + owl": {**_ALPS, "allocation": "owl"},
    "alps + outliers": {**_ALPS, "allocation": "outliers"},
}
"""What `MWandaConfig()` does, the variance term with OWL on either base, and what refinement and weight updates make of
them; `tuned` has the OWL that is best on Wanda's score by `--tune` on a small model, and ALPS has the default damping
of this library."""

GRID_PRESETS: dict[str, GridPreset] = {
    "quick": GridPreset({**BASES, "defaults": {}}),
    "ablation": GridPreset(_ablation()),
    "forms": GridPreset({**BASES, **_forms()}),
    "allocations": GridPreset(_allocations()),
    "baselines": GridPreset({**BASELINES, **BEST}),
    "published": GridPreset({f"preset {name}": settings for name, settings in PRESETS.items()}),
    "full": GridPreset(
        {**BASELINES, **_ablation(), **BEST, **_forms(), **_allocations()},
        sparsities=(0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
        patterns=("2:4", "4:8"),
    ),
}


def read_methods(path: Path) -> dict[str, dict[str, Any]]:
    """Reads the user's own grid: a JSON object of name to settings.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it holds anything else.
    """
    try:
        methods = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(methods, dict) or not all(isinstance(each, dict) for each in methods.values()):
        raise ValueError(f'{path} must hold a JSON object of name to settings: {{"mine": {{"criterion": "wanda"}}}}.')
    return methods


def plan_of(settings: Mapping[str, Any], sparsity: float) -> "SparsityPlan | None":
    """The plan that a method has for a sparsity; None if it names none.

    Args:
        settings: Those of the method.
        sparsity: Share of the weights to remove.

    Raises:
        LookupError: If it names plans, but for other sparsities.
        OSError: If a file cannot be read.
        ValueError: If a file holds no plan.
    """
    if PLAN not in settings:
        return None
    from ...pruning.sparsity_plan import SparsityPlan

    named = settings[PLAN]
    paths = [named] if isinstance(named, str) else named
    if not isinstance(paths, (list, tuple)) or not paths or not all(isinstance(path, str) for path in paths):
        raise ValueError(f"plan={named!r} is not allowed: give the path of a file with a plan, or a list of paths.")
    for path in paths:
        plan = SparsityPlan.load(path)
        if is_close(plan.target, sparsity):
            return plan
    raise LookupError(f"No plan is for a sparsity of {sparsity:g}.")


def choose(methods: Methods, names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Some of the methods, in the order of their names.

    Raises:
        ValueError: If there is no such method.
    """
    for name in names:
        if name not in methods:
            raise ValueError(f"There is no method {name!r} in the grid. It has: {', '.join(map(repr, methods))}.")
    return {name: methods[name] for name in names}


def expand(
    methods: Methods, sparsities: Sequence[float], patterns: Sequence[str], shared: Mapping[str, Any]
) -> Iterator[tuple[str, MWandaConfig]]:
    """Every method at every sparsity and pattern.

    An N:M pattern fixes the sparsity of every block, so what methods say about the allocation does not apply there, and
    methods with a plan are left out. If methods have the same settings, the first is kept.

    Args:
        methods: What to compare.
        sparsities: Shares of the weights to remove.
        patterns: N:M patterns.
        shared: Settings for every method; its own settings override them.

    Raises:
        OSError: If a plan cannot be read.
        ValueError: If settings are not allowed; the message names the method. If a file holds no plan.
    """
    points: list[dict[str, Any]] = [{"sparsity": each} for each in sparsities] + [{"pattern": x} for x in patterns]
    known = set()
    for point, (name, settings) in itertools.product(points, methods.items()):
        if taken := [key for key in settings if key in (*BY_THE_PLAN, *OF_THE_TEXT)]:
            raise ValueError(f"Method {name!r} sets {taken[0]!r}, which is the same for all methods: leave it out.")
        plan = settings.get(PLAN)
        if plan is not None:
            settings = {key: value for key, value in settings.items() if key != PLAN}
            try:
                plan_of({PLAN: plan}, point.get("sparsity", -1.0))
            except LookupError:
                continue
        if "pattern" in point:
            settings = {key: value for key, value in settings.items() if key not in OF_THE_ALLOCATION}
        try:
            config = MWandaConfig.from_dict({**shared, **settings, **point})
        except (ValueError, TypeError) as error:
            raise ValueError(f"Method {name!r}: {error}") from error
        if (key := (config, str(plan))) not in known:
            known.add(key)
            yield name, config


def label(sparsity: float, pattern: str) -> str:
    """Name of a point in tables: `60 %`, or the pattern."""
    return f"{100 * sparsity:g} %" if pattern == "unstructured" else pattern
