"""What `criterion` and `allocation` can name: what the package has, and what others register.

To add one to the package, write its function in a module of `pruning/` and its line in the table below. The table
only names functions; they are imported when first called, so that the names are known without torch.
"""

import dataclasses
import importlib
import math
from collections.abc import Callable
from typing import Any

from .values import check_number

Function = Callable[..., Any]


def _from(reference: str) -> Function:
    """The function `module:name` of this package, imported when it is called."""
    module, _, name = reference.partition(":")

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(f".{module}", __package__), name)(*args, **kwargs)

    return call


_ALLOCATE = _from("pruning.allocation:allocate")


@dataclasses.dataclass(frozen=True)
class Criterion:
    """Decides which weights of a matrix to remove. It has either a score or a solver.

    Attributes:
        score: Takes the weight `(out, in)`, its `WeightStatistics`, the language weights `(languages,)` and the config,
            and gives scores `(out, in)`, higher for weights to keep. Without `needs_data`, statistics and language
            weights are None.
        solve: Takes the weight `(out, in)`, the Gram matrix `(in, in)`, the sparsity and the config, and gives the
            mask `(out, in)`, True where pruned, and the new values `(out, in)`.
        needs_data: Whether it uses statistics (a score) or the Gram matrix (a solver).
        uses_activity: Whether it reads the activity counts that `activation` asks for.
        fallback: Criterion that replaces it where its data are missing.
        damping: The default of `damping` for it.
        weighs_rows: Whether a solver takes one more argument, factors by which the scores of rows are weighed against
            each other, shape `(out, 1)`; scores are weighed in any case.
        overwrites: Whether a solver may leave anything in the Gram matrix, of which it saves a copy.
    """

    score: Function | None = None
    solve: Function | None = None
    needs_data: bool = True
    uses_activity: bool = False
    fallback: str = "magnitude"
    damping: float = 0.1
    weighs_rows: bool = False
    overwrites: bool = False

    @property
    def updates(self) -> bool:
        """Whether it chooses the mask and the new values of the weights together."""
        return self.solve is not None


@dataclasses.dataclass(frozen=True)
class Allocation:
    """Decides how sparse each block becomes.

    Attributes:
        importance: Takes the weights of one block, the `CalibrationStatistics`, the language weights `(languages,)` and
            the config, and gives the importance of the block, higher for blocks to keep; None if it cannot tell.
            Without `needs_data`, statistics and language weights are None. Without this function, all blocks get the
            same sparsity.
        spread: Turns importances into sparsities; arguments and result are those of `pruning.allocation.allocate`.
        needs_data: Whether the importance depends on statistics.
        compares_languages: Whether it needs at least two languages.
    """

    importance: Function | None = None
    spread: Function = _ALLOCATE
    needs_data: bool = True
    compares_languages: bool = False


CRITERIA: dict[str, Criterion] = {
    "magnitude": Criterion(_from("pruning.scoring:magnitude"), needs_data=False),
    "wanda": Criterion(_from("pruning.scoring:wanda")),
    "ria": Criterion(_from("pruning.scoring:ria")),
    "mwanda": Criterion(_from("pruning.scoring:mwanda"), uses_activity=True),
    "sparsegpt": Criterion(
        solve=_from("pruning.solvers:sparsegpt"), fallback="wanda", damping=0.01, weighs_rows=True, overwrites=True
    ),
    "alps": Criterion(solve=_from("pruning.solvers:alps"), fallback="wanda", weighs_rows=True),
}
ALLOCATIONS: dict[str, Allocation] = {
    "uniform": Allocation(needs_data=False),
    "owl": Allocation(_from("pruning.importance:owl")),
    "outliers": Allocation(_from("pruning.importance:owl"), _from("pruning.allocation:allocate_outliers")),
    "cwl": Allocation(_from("pruning.importance:cwl"), compares_languages=True),
    "dlp": Allocation(_from("pruning.importance:dlp")),
    "alpha": Allocation(
        _from("pruning.importance:alpha"), _from("pruning.allocation:allocate_ratios"), needs_data=False
    ),
}


def register_criterion(
    name: str,
    score: Function | None = None,
    *,
    solve: Function | None = None,
    needs_data: bool = True,
    uses_activity: bool = False,
    fallback: str | None = None,
    damping: float = 0.1,
) -> None:
    """Makes `name` a legal value of `criterion`; `docs/extending.md` shows how. Give either `score` or `solve`.

    Args:
        name: A new name.
        score: As in `Criterion`.
        solve: As in `Criterion`.
        needs_data: Whether a score uses statistics; a solver always has the Gram matrix.
        uses_activity: Whether a score reads the activity counts that `activation` asks for.
        fallback: Criterion that replaces this one where its data are missing. None: `"magnitude"`, or `"wanda"` for a
            solver.
        damping: The default of `damping` for it.

    Raises:
        TypeError: If there is not exactly one function, or it cannot be called.
        ValueError: If the name is taken, the fallback is unknown, or the damping is not allowed.
    """
    _check_name("criterion", name, CRITERIA)
    if (score is None) is (solve is None):
        raise TypeError(f"criterion {name!r}: give either score or solve.")
    _check_callable("criterion", name, **({"score": score} if solve is None else {"solve": solve}))
    check_number("damping", damping, lambda value: value >= 0, "a number that is not negative")
    if fallback is None:
        fallback = "magnitude" if solve is None else "wanda"
    if fallback not in CRITERIA:
        raise ValueError(
            f"criterion {name!r} cannot fall back to {fallback!r}, which is not known: give one of "
            f"{', '.join(map(repr, CRITERIA))}."
        )
    CRITERIA[name] = Criterion(
        None if score is None else _checked_score(name, score),
        None if solve is None else _checked_solve(name, solve),
        needs_data or solve is not None,
        uses_activity,
        fallback,
        damping,
    )


def register_allocation(
    name: str,
    importance: Function,
    *,
    spread: Function | None = None,
    needs_data: bool = True,
    compares_languages: bool = False,
) -> None:
    """Makes `name` a legal value of `allocation`; `docs/extending.md` shows how.

    Args:
        name: A new name.
        importance: As in `Allocation`.
        spread: As in `Allocation`; `pruning.allocation.allocate` if None.
        needs_data: Whether the importance depends on statistics.
        compares_languages: Whether it needs at least two languages.

    Raises:
        TypeError: If a function cannot be called.
        ValueError: If the name is taken.
    """
    _check_name("allocation", name, ALLOCATIONS)
    spread = _ALLOCATE if spread is None else spread
    _check_callable("allocation", name, importance=importance, spread=spread)
    ALLOCATIONS[name] = Allocation(_checked_importance(name, importance), spread, needs_data, compares_languages)


def score_for(name: str, has_statistics: bool) -> tuple[Function, bool]:
    """The score for a matrix without a Gram matrix: the criterion's own, or that of its fallback.

    Returns:
        The score, and whether it uses statistics, which are then available.
    """
    criterion = CRITERIA[name]
    while criterion.score is None or (criterion.needs_data and not has_statistics):
        criterion = CRITERIA[criterion.fallback]
    return criterion.score, criterion.needs_data


def list_criteria(updates: bool) -> str:
    """Names of the criteria that are solvers, or of the others, for a help text."""
    return ", ".join(repr(name) for name, criterion in CRITERIA.items() if criterion.updates is updates)


def _check_name(kind: str, name: str, taken: dict[str, Any]) -> None:
    if not isinstance(name, str) or not name:
        raise ValueError(f"{name!r} is not allowed as the name of the {kind}: give a string.")
    if name in taken:
        raise ValueError(f"The {kind} {name!r} already exists: choose another name.")


def _check_callable(kind: str, name: str, **functions: Any) -> None:
    for role, function in functions.items():
        if not callable(function):
            raise TypeError(f"{kind} {name!r}: {role}={function!r} is not a function.")


def _checked_score(name: str, score: Function) -> Function:
    """Wraps somebody else's function, to check its result before anything is pruned by it."""

    def checked(weight: Any, *args: Any) -> Any:
        scores = score(weight, *args)
        if tuple(scores.shape) != tuple(weight.shape) or scores.isnan().any():
            raise ValueError(
                f"criterion {name!r} must give a score without NaN for each of {tuple(weight.shape)} weights, but gave "
                f"NaN or another shape, {tuple(scores.shape)}."
            )
        return scores

    return checked


def _checked_solve(name: str, solve: Function) -> Function:
    """As `_checked_score`."""

    def checked(weight: Any, *args: Any) -> Any:
        pruned, values = solve(weight, *args)
        if not tuple(pruned.shape) == tuple(values.shape) == tuple(weight.shape) or values[pruned].any():
            raise ValueError(
                f"criterion {name!r} must give a mask and values of shape {tuple(weight.shape)}, zero where the mask "
                f"prunes, but gave {tuple(pruned.shape)} and {tuple(values.shape)} or other values there."
            )
        return pruned, values

    return checked


def _checked_importance(name: str, importance: Function) -> Function:
    """As `_checked_score`."""

    def checked(*args: Any) -> float | None:
        value = importance(*args)
        if value is None:
            return None
        if not math.isfinite(value):
            raise ValueError(f"allocation {name!r} must give a finite importance or None, but gave {value!r}.")
        return float(value)

    return checked
