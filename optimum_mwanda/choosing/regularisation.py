"""Shrinkage and ridge, chosen by leaving languages out."""

import dataclasses
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from ..configuration import MWandaConfig
from ..data.chunks import CalibrationChunks, build_chunks
from ..modeling.block_source import BlockSource
from ..modeling.blocks import inference_mode
from ..modeling.weights import Weights
from ..pruning.checks import check_held_whole, open_model
from ..pruning.scoring import weigh_languages
from ..pruning.sparsity_plan import SparsityPlan
from ..registry import CRITERIA
from ..utils import markdown_table, progress_bar
from ..walking.store import HiddenStates, OnDevice
from .left_out import count_folds, judge, seen_by_part

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PARTS = 9
"""Into how many parts languages are dealt; the left-out part with the largest error counts."""
TOLERANCE = 0.01
"""By what share errors on left-out languages may differ and count as the same; then the others decide."""
BLOCKS = 4
"""Most blocks to try candidates on; they lie evenly in the model."""

_SHRINKAGES = (0.0, 0.15, 0.3, 0.5)
_RIDGES = (0.5, 2.0, 8.0)
_DAMPINGS = (1.0, 3.0, 10.0)
"""As multiples of the damping that the criterion implies."""

Settings = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class TriedRegularisation:
    """A regularisation that was tried.

    Attributes:
        settings: The settings that it stands for.
        seen: Error of the matrices' outputs on the languages that decided masks and values, as a share of the outputs;
            the mean over matrices.
        left_out: The same on the left-out languages that fare worst in each matrix.
    """

    settings: Settings
    seen: float
    left_out: float


@dataclasses.dataclass(frozen=True)
class TunedRegularisation:
    """The regularisation with the least error on languages that did not decide.

    Of several whose errors there differ by no more than 1 %, it is the one with the least error on the others.

    Attributes:
        settings: The settings to choose, for `MWandaConfig.replace`.
        tried: All that was tried; first what the config said.
        folds: The languages that were left out together.
    """

    settings: Settings
    tried: tuple[TriedRegularisation, ...]
    folds: tuple[tuple[str, ...], ...]

    @property
    def note(self) -> str:
        """How the settings were found, in a few words for the record."""
        found = []
        for names in dict.fromkeys(tuple(each.settings) for each in self.tried):
            stage = [each for each in self.tried if tuple(each.settings) == names]
            best = next(each for each in stage if each.settings.items() <= self.settings.items())
            found.append(
                f"{_named(best.settings)} of {len(stage)} candidates, with an error of {_percent(best.left_out)} on "
                f"the left-out languages that fare worst ({_named(stage[0].settings)}: {_percent(stage[0].left_out)})"
            )
        return "; ".join(found)

    def __str__(self) -> str:
        rows = [[_named(each.settings), _percent(each.seen), _percent(each.left_out)] for each in self.tried]
        table = markdown_table(["regularisation", "error, seen languages", "left-out languages, worst"], rows)
        return f"{table}\n{self.note}."


def tune_regularisation(
    model: "PreTrainedModel",
    dataset: Any,
    tokenizer: "PreTrainedTokenizerBase | str | None" = None,
    config: MWandaConfig | None = None,
    *,
    plan: SparsityPlan | None = None,
    progress: bool = True,
) -> TunedRegularisation:
    """Chooses shrinkage and ridge for refinement, reconstruction and solvers by leaving languages out in turn.

    The Gram matrices of some languages decide masks and values, those of the others say how well: `tr D G Dᵀ` for the
    change `D` of a matrix; what counts is the left-out languages that fare worst. Candidates are tried on about 64 rows
    of each matrix in at most four blocks, all of which lie evenly, with the inputs that the dense model has there, also
    if the settings ask for sequential calibration. `MWandaConfig(tune_regularisation=True)` does this before pruning.

    Args:
        model: A dense model, wholly in memory; it is not changed.
        dataset: Calibration data, as for `MWandaPruner.prune`; read once.
        tokenizer: As for `MWandaPruner.prune`.
        config: Settings with refinement, with reconstruction of matrices or with a solver.
        plan: The sparsity of every block; None for the target sparsity everywhere.
        progress: Whether to show a progress bar.

    Returns:
        The settings to replace: `refinement_shrinkage` and `refinement_ridge`, `reconstruction_shrinkage` and
        `damping`, or all four.

    Raises:
        TypeError: As `MWandaPruner.prune`.
        ValueError: As `MWandaPruner.prune`, or if the settings have nothing to tune, there are fewer than two languages
            that weigh anything, or the model is offloaded or shared out among processes.
        FloatingPointError: If weights or activations are NaN or infinite.
    """
    config = config or MWandaConfig()
    weights, source = open_model(model, config, plan)
    chunks = build_chunks(dataset, config, model, tokenizer)
    return tune_on(model, weights, chunks, config, source, plan, progress=progress)


def tune_on(
    model: "PreTrainedModel",
    weights: Weights,
    chunks: CalibrationChunks,
    config: MWandaConfig,
    source: BlockSource,
    plan: SparsityPlan | None = None,
    store: Callable[[], HiddenStates] = OnDevice,
    progress: bool = False,
) -> TunedRegularisation:
    """`tune_regularisation` on text that was read and weights that were found.

    Args:
        model: As there.
        weights: Module path of a block to its weights.
        chunks: Calibration data.
        config: As there.
        source: The blocks.
        plan: As there.
        store: Makes a place for the hidden states of a part of the text.
        progress: As there.

    Raises:
        ValueError: As there.
        FloatingPointError: As there.
    """
    check_held_whole(model, source, "Regularisation is tuned")
    current = _only_matrices(config)
    stages = [_candidates(names, current) for names in _stages(current)]
    if not stages:
        raise ValueError(
            "There is no regularisation to tune: give refinement='swap', reconstruction='obs' or a criterion that "
            "updates weights."
        )
    parts = _make_parts(chunks, current)
    visited = {name: weights[name] for name in _evenly([*weights], BLOCKS)}
    tried: list[TriedRegularisation] = []
    chosen: dict[str, float] = {}
    for number, candidates in enumerate(stages):
        # The mask is chosen before values are, so its regularisation is judged by the mask alone.
        is_last = number == len(stages) - 1
        base = current if is_last else current.replace(reconstruction="none", calibration="dense")
        steps = seen_by_part(model, visited, chunks, parts, base, source, store)
        with inference_mode(model), closing(steps):
            bar = progress_bar(steps, total=len(visited), description="Tuning", show=progress)
            found = judge(bar, parts, [base.replace(**each) for each in candidates], plan)
        stage = [TriedRegularisation(each, *errors) for each, errors in zip(candidates, found, strict=True)]
        best = _best(stage)
        tried += stage
        chosen |= best.settings
        current = current.replace(**best.settings)
    together = [parts[fold :: count_folds(parts)] for fold in range(count_folds(parts))]
    folds = tuple(tuple(sorted(language for part in fold for language in part)) for fold in together)
    return TunedRegularisation(chosen, tuple(tried), folds)


def _best(tried: Sequence[TriedRegularisation]) -> TriedRegularisation:
    """The candidate that is best on seen languages among those that are as good as any on left-out ones."""
    least = min(each.left_out for each in tried)
    return min((each for each in tried if each.left_out <= (1 + TOLERANCE) * least), key=lambda each: each.seen)


def _only_matrices(config: MWandaConfig) -> MWandaConfig:
    """The settings without what looks at more than one matrix, on dense inputs."""
    reconstruction = "obs" if config.updates_matrices else "none"
    weights = "equal" if config.language_weights == "minimax" else config.language_weights
    return config.replace(
        refinement="swap" if config.swaps else "none",
        reconstruction=None if CRITERIA[config.criterion].updates else reconstruction,
        calibration="dense",
        damping=config.damping,
        language_weights=weights,
        tune_regularisation=False,
    )


def _stages(config: MWandaConfig) -> list[tuple[str, str]]:
    """The settings to choose together, in the order in which pruning uses them."""
    refined, updated = config.swaps, config.updates_matrices
    return [
        *([("refinement_shrinkage", "refinement_ridge")] if refined else []),
        *([("reconstruction_shrinkage", "damping")] if updated else []),
    ]


def _candidates(names: tuple[str, str], config: MWandaConfig) -> list[dict[str, float]]:
    """What the settings say, and values around the defaults."""
    ridges: tuple[float, ...] = _RIDGES
    if names[1] == "damping":
        ridges = tuple(round(factor * CRITERIA[config.criterion].damping, 9) for factor in _DAMPINGS)
    values = [tuple(getattr(config, name) for name in names), *itertools.product(_SHRINKAGES, ridges)]
    return [dict(zip(names, pair, strict=True)) for pair in dict.fromkeys(values)]


def _make_parts(chunks: CalibrationChunks, config: MWandaConfig) -> list[dict[str, float]]:
    """Languages with their weights, dealt at random; every third part is left out together."""
    tokens = chunks.tokens
    weighed = dict(zip(tokens, weigh_languages(config, tokens).tolist(), strict=True))
    languages = [language for language, weight in weighed.items() if weight > 0]
    if len(languages) < 2:
        raise ValueError(
            "Regularisation is tuned by leaving languages out, but only "
            f"{', '.join(map(repr, languages))} weighs anything: calibrate on two languages or more."
        )
    random.Random(config.seed).shuffle(languages)
    count = min(PARTS, len(languages))
    return [{language: weighed[language] for language in sorted(languages[part::count])} for part in range(count)]


def _evenly(names: Sequence[str], count: int) -> list[str]:
    """At most so many of some names, evenly from the first to the last."""
    if len(names) <= count:
        return [*names]
    return [names[round(number * (len(names) - 1) / (count - 1))] for number in range(count)]


def _named(settings: Settings) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in settings.items())


def _percent(error: float) -> str:
    return f"{100 * error:.2f} %"
