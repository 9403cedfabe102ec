"""`find_sparsity`: the highest sparsity at which no language degrades too much."""

import bisect
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ...configuration import MWandaConfig
from ...evaluation.perplexity import measure_languages
from ...evaluation.reading import read_held_out
from ...evaluation.report import PerplexityComparison
from ...evaluation.settings import EvaluationSettings
from ...modeling.blocks import find_blocks
from ...modeling.interrupts import deferred_interrupts
from ...modeling.weights import find_weights, flat
from ...processes.group import current
from ...pruner import MWandaPruner
from ...record.schema import SparsityRecord
from ...storage.journal import Journal
from ...walking.finished import begin
from ..dense_state import DenseState
from .defaults import BOUNDS, MAX_DEGRADATION, RESOLUTION
from .outcome import PROTECTED, PRUNED, UNPROTECTED, SparsitySearch, SparsityTrial
from .remembered import Measured, Remembered
from .space import SearchSpace, protect_languages
from .trials import Pruning

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def find_sparsity(
    model: "PreTrainedModel",
    dataset: Any,
    evaluation_dataset: Any,
    tokenizer: "PreTrainedTokenizerBase | str | None" = None,
    config: MWandaConfig | None = None,
    *,
    max_degradation: float = MAX_DEGRADATION,
    bounds: tuple[float, float] = BOUNDS,
    resolution: float = RESOLUTION,
    strengths: Sequence[float] | None = None,
    protect: Mapping[str, float] | None = None,
    apply: bool = True,
    progress: bool = True,
    journal: Journal | None = None,
    **settings: Any,
) -> SparsitySearch:
    """Finds the highest sparsity at which no language's bits per byte rise by more than a given fraction.

    Sparsities `low, low + resolution, …, high` are bisected for each allocation strength. One calibration and one
    evaluation of the dense model serve all trials; with refinement, reconstruction or sequential calibration, each
    trial calibrates anew. Bisection assumes that if one sparsity is too much, every higher one is too; this is nearly
    always so, but not certain. The sparsity that is found was measured as feasible, and the next higher one as not; a
    feasible one beyond that would be missed.

    If anything fails or is interrupted, the model is left as it was. For this, and for the trials, a copy of the
    prunable weights is kept on the CPU.

    Args:
        model: A causal language model or an encoder-decoder; pruned in place at the end, if something was found.
        dataset: Calibration data, as for `MWandaPruner.prune`; read more than once.
        evaluation_dataset: Held-out text, as for `evaluate_languages`; read once per trial. The limit holds for all of
            its languages, whether or not they are calibrated on.
        tokenizer: Tokenizer for texts, or its name or path. None: the one saved beside the model.
        config: Settings; None for the defaults. Its `sparsity` is not used.
        max_degradation: The fraction: 0.05 allows 5 %.
        bounds: Lowest and highest sparsity to try.
        resolution: Step between sparsities.
        strengths: Values of `allocation_strength` to try, each with its own bisection. None: that of `config`.
        protect: Language to a factor that multiplies its weight in calibration, whatever `config.language_weights`
            says. The report then shows what this changes at the sparsity that was found.
        apply: Whether to leave the model pruned at that sparsity; otherwise it ends as it was.
        progress: Whether to show progress bars.
        journal: Where measured trials are kept, so that a search that was stopped can go on: `Journal(folder)`.
        **settings: Evaluation settings, as for `evaluate_languages`; columns, `sequence_length`, `bos`, `batch_size`
            and `seed` are those of `config` by default.

    Returns:
        Every trial, and the chosen one: None if even the lowest sparsity degrades a language too much. The model is
        then left as it was.

    Raises:
        TypeError: As `MWandaPruner.prune` and `evaluate_languages`.
        ValueError: As these, or if a limit is not allowed, or a protected language was not calibrated on.
        FloatingPointError: As these. If a sparse model gives NaN, lower the upper bound.
        OtherRunError: If the journal is of a search with another model, other data or settings.
    """
    config = MWandaPruner(config).config
    space = SearchSpace(config, max_degradation, bounds, resolution, strengths, protect or {})
    prune = Pruning(model, dataset, tokenizer, config, progress)
    protected = protect_languages(config, space.protect, prune.tokens) if space.protect else config
    evaluation = EvaluationSettings.like(config, **settings)
    measure = partial(measure_languages, model, tokenizer, evaluation_dataset, evaluation, progress=progress)
    if journal is not None:
        if current().size > 1:
            raise ValueError("A journal is for a search in one process: leave it out where several share the work.")
        text = read_held_out(model, tokenizer, evaluation_dataset, evaluation).digests
        begin(journal, model, config.replace(sparsity=space.bounds[0]), prune.fingerprints, text)
    remembered = Remembered(journal)
    dense = remembered(None, lambda: Measured(measure())).report
    weights = find_weights(find_blocks(model, config.blocks), config.include, config.exclude)
    with deferred_interrupts(), DenseState(model, flat(weights)) as state:

        def measured(settings: MWandaConfig) -> Measured:
            """Prunes the dense model and measures it."""
            state.restore()
            prune(settings)
            record = SparsityRecord.parse(model.config.mwanda_config)
            return Measured(measure(), record.achieved_sparsity, tuple(record.languages))

        def compare(settings: MWandaConfig, name: str) -> tuple[PerplexityComparison, float]:
            """Compares a pruned model with the dense one; also gives its sparsity."""
            found = remembered(settings, lambda: measured(settings))
            return PerplexityComparison(
                dense, {name: found.report}, [*found.languages] or None
            ), found.achieved_sparsity

        name = PROTECTED if space.protect else PRUNED
        tried = dataclasses.replace(space, config=protected)
        trials, comparisons = _bisect(tried, lambda settings: compare(settings, name))
        search = SparsitySearch(space, tuple(trials), PerplexityComparison(dense, {}))
        chosen = search.chosen
        if chosen is not None:
            comparison = comparisons[trials.index(chosen)]
            if space.protect:
                unprotected, _ = compare(space.at(chosen.sparsity, chosen.strength), UNPROTECTED)
                pruned = {**comparison.pruned, **unprotected.pruned}
                comparison = dataclasses.replace(comparison, pruned=pruned)
            search = dataclasses.replace(search, comparison=comparison)
        state.restore()
        if chosen is not None and apply:
            prune(tried.at(chosen.sparsity, chosen.strength))
    return search


def _bisect(
    space: SearchSpace, compare: Callable[[MWandaConfig], tuple[PerplexityComparison, float]]
) -> tuple[list[SparsityTrial], list[PerplexityComparison]]:
    """Bisects the sparsities once per strength; returns all trials in order, and what each measured."""
    trials: list[SparsityTrial] = []
    comparisons: list[PerplexityComparison] = []

    def is_too_much(sparsity: float, strength: float | None) -> bool:
        settings = space.at(sparsity, strength)
        comparison, achieved = compare(settings)
        (name,) = comparison.pruned
        degradations = {each: comparison.bits_per_byte_increase(name, each) for each in comparison.languages}
        trial = SparsityTrial(
            sparsity,
            None if settings.allocation == "uniform" else settings.allocation_strength,
            achieved,
            degradations,
            max(degradations.values()) <= space.max_degradation,
        )
        logger.info("%s", trial)
        trials.append(trial)
        comparisons.append(comparison)
        return not trial.feasible

    for strength in space.strengths or (None,):
        # Measures the last sparsity that is not too much and the first that is, if both exist.
        bisect.bisect_left(space.sparsities, True, key=partial(is_too_much, strength=strength))
    return trials, comparisons
