"""`search_plan`: the sparsity of every matrix, found by trying."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...configuration import MWandaConfig
from ...data.chunks import build_chunks
from ...evaluation.divergence import Divergence
from ...legal import Number, OneOf
from ...modeling.block_source import BlockSource
from ...modeling.blocks import find_blocks, inference_mode
from ...modeling.interrupts import deferred_interrupts
from ...modeling.likelihood import check_measurable
from ...modeling.sharding import shares_parameters
from ...modeling.weights import Weights, find_weights, flat
from ...pruner import MWandaPruner
from ...pruning.checks import check_model, check_plan
from ...pruning.experts_policy import leave_out_experts
from ...pruning.scoring import weigh_languages
from ...pruning.sparsity_plan import SparsityPlan
from ...registry import CRITERIA
from ...storage.journal import Journal
from ...utils import markdown_table, progress_bar
from ...values import is_close
from ...walking.finished import begin
from ..dense_state import DenseState
from .candidates import find_units, start_of, to_plan
from .evolution_defaults import CANDIDATES, CHUNKS, PROPOSED_BY, STEP, TOKENS, ProposedBy
from .fitness import Fitness, Masked
from .proposals import Descent, Exchanges, Proposals
from .slopes import Slopes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ROUNDING = 1e-4
"""By how much the sparsity of a plan that a search begins with may differ from the one asked for."""
_PROPOSED_BY = OneOf(CANDIDATES)
_COUNT = Number(at_least=1, whole=True)
_LEGAL = {
    "candidates": _COUNT,
    "step": Number(above=0, below=1),
    "chunks": _COUNT,
    "tokens": Number(at_least=2, whole=True),
    "worst": Number(at_least=0, at_most=1),
}


@dataclasses.dataclass(frozen=True)
class PlanSearch:
    """What a search for a plan found.

    Attributes:
        plan: The best plan.
        before: Language to the divergence from the dense model's predictions, in nats per token, with the plan that the
            search began with; masks by the score of the criterion, without refinement and new values.
        after: The same with the best plan.
        tried: How many plans were tried.
        accepted: How many of them were better than all before.
    """

    plan: SparsityPlan
    before: Mapping[str, float]
    after: Mapping[str, float]
    tried: int
    accepted: int

    def __str__(self) -> str:
        rows = [[name, f"{self.before[name]:.4f}", f"{after:.4f}"] for name, after in self.after.items()]
        table = markdown_table(["language", "nats from dense, before", "after"], rows)
        tried = f"{self.tried} plans were tried, and {self.accepted} were better than all before."
        return f"{self.plan}\n\n{table}\n{tried}"


def search_plan(
    model: "PreTrainedModel",
    dataset: Any,
    tokenizer: "PreTrainedTokenizerBase | str | None" = None,
    config: MWandaConfig | None = None,
    *,
    plan: SparsityPlan | None = None,
    proposed_by: ProposedBy = PROPOSED_BY,
    candidates: int | None = None,
    step: float = STEP,
    chunks: int = CHUNKS,
    tokens: int = TOKENS,
    worst: float = 0.0,
    progress: bool = True,
    journal: Journal | None = None,
) -> PlanSearch:
    """Searches for the sparsity of every matrix with which the model's predictions stay closest to the dense model's.

    It begins with a plan that is given, or that of the config's allocation. Plans are proposed, and one that brings the
    predictions closer to those of the dense model is what the next ones begin with. The divergence is the mean over
    languages, as the config weighs them, or partly that of the worst language. A plan that is worse on the first half
    of the text is not measured on the second. Masks are those of the criterion's score; the plan serves refinement,
    reconstruction and the solvers as well. What proposes plans is one of these:

    - `"slopes"`: a pass back through the pruned model tells what pruning a little more of each matrix would cost, to
      first order, and all matrices move at once, from where pruning costs much to where it costs little.
    - `"exchanges"`: a few pairs of matrices, drawn by chance, exchange pruned weights. This is evolutionary search with
      one parent and one child, after EvoPress (arXiv 2410.14649).

    The model ends as it was, also after a failure or an interrupt. For this a copy of the prunable weights is kept on
    the CPU.

    Args:
        model: A dense causal language model, wholly in memory.
        dataset: Calibration data, as for `MWandaPruner.prune`; read twice.
        tokenizer: As for `MWandaPruner.prune`.
        config: Settings; None for the defaults. Solvers are replaced by the score that they fall back to.
        plan: The plan to begin with, one that an earlier search found for example; None for that of the allocation.
        proposed_by: What proposes plans.
        candidates: How many plans to try at most; None for 24 by slopes, which end before that if only tiny steps are
            left, and 400 by exchanges. Each costs up to one forward pass over the text, and by slopes each one that was
            better a backward pass too, in which blocks are recomputed.
        step: Sparsity that a matrix gains or loses: by slopes at first, where pruning costs `e` times as much or as
            little as where nothing moves; in an exchange half and twice as much are tried too.
        chunks: Of every language, the text is this many calibration chunks at most,
        tokens: and of each of them this many tokens at most.
        worst: Share of the worst language in the divergence, from 0 (the mean alone) to 1 (the worst language alone).
        progress: Whether to show progress bars.
        journal: Where measured plans are kept, so that a search that was stopped can go on: `Journal(folder)`.

    Returns:
        The best plan, for `MWandaPruner.prune(..., plan=...)`, and what it gained.

    Raises:
        TypeError: As `MWandaPruner.prune`.
        ValueError: As `MWandaPruner.prune`, or if a number is not allowed, the pattern fixes all sparsities, the plan
            is for another sparsity, or the model is an encoder-decoder, offloaded, or shared out among processes.
        FloatingPointError: If weights, activations or predictions are NaN or infinite.
        OtherRunError: If the journal is of a search with another model, other data or settings.
    """
    config = _only_scores(MWandaPruner(config).config)
    check_model(model, config)
    _PROPOSED_BY.check("proposed_by", proposed_by)
    candidates = CANDIDATES[proposed_by] if candidates is None else candidates
    text_settings = {"chunks": chunks, "tokens": tokens}
    _check(model, config, plan, {"candidates": candidates, "step": step, "worst": worst, **text_settings})
    pruner = MWandaPruner(config, progress=progress)
    statistics = pruner.calibrate(model, dataset, tokenizer)
    text = build_chunks(dataset, config, model, tokenizer)
    if journal is not None:
        begin(journal, model, config, statistics.fingerprints, text_settings)
    weights = find_weights(find_blocks(model, config.blocks), config.include, config.exclude)
    weights = leave_out_experts(weights, statistics, config)
    first = plan or pruner.allocate(model, statistics)
    units = find_units(weights)
    if len(units) < 2:
        raise ValueError("Only one matrix is pruned, so there is nothing to search for: choose more with include.")
    bounds = config.min_block_sparsity, config.max_block_sparsity
    with deferred_interrupts(), inference_mode(model), DenseState(model, flat(weights)) as state:
        divergence = Divergence(model, text, chunks, tokens, config.batch_size)
        masked = Masked(state, units, statistics, config)
        languages = dict(zip(statistics.tokens, weigh_languages(config, statistics.tokens).tolist(), strict=True))
        fitness = Fitness(divergence, masked, languages, worst, journal)
        best = start_of(first, units)
        before = measured = fitness.of(best)
        proposals: Proposals = Exchanges(units, config.seed, step, bounds)
        if proposed_by == "slopes":
            slopes = Slopes(model, config.blocks, divergence, masked, units, journal)
            proposals = Descent(units, lambda plan, at: slopes.at(plan, fitness.weights(at.languages)), step, bounds)
        tried = accepted = 0
        for _ in progress_bar(range(candidates), total=candidates, description="Searching", show=progress):
            child = proposals.next(best, measured)
            if child is None:
                break
            if child == best:
                continue
            tried += 1
            if (found := fitness.better(child, measured)) is not None:
                best, measured, accepted = child, found, accepted + 1
        state.restore()
    importance = {block.name: block.importance for block in first.blocks}
    found_plan = to_plan(best, units, weights, importance, config.target_sparsity)
    return PlanSearch(found_plan, before.languages, measured.languages, tried, accepted)


def _only_scores(config: MWandaConfig) -> MWandaConfig:
    """The settings, without all that looks at blocks one after the other."""
    criterion = CRITERIA[config.criterion]
    name = criterion.fallback if criterion.updates else config.criterion
    sensitivity = config.sensitivity if config.weighs_rows else "none"
    changes = {"refinement": "none", "reconstruction": "none", "calibration": "dense", "damping": None}
    return config.replace(criterion=name, sensitivity=sensitivity, **changes)


def _check(
    model: "PreTrainedModel", config: MWandaConfig, plan: SparsityPlan | None, settings: Mapping[str, float]
) -> None:
    """Checks before the work that there is something to search for.

    Raises:
        ValueError: If there is not.
    """
    for name, value in settings.items():
        _LEGAL[name].check(name, value)
    if config.finds_weights:
        raise ValueError(
            "language_weights='minimax' is found by pruning, for which a plan must be there: find weights with "
            "find_language_weights first, and give them, or give 'equal'."
        )
    if config.kept_of is not None:
        raise ValueError(
            f"pattern={config.pattern!r} fixes the sparsity of every matrix, so there is nothing to search for: use "
            "pattern='unstructured'."
        )
    if plan is not None:
        _check_start(plan, find_weights(find_blocks(model, config.blocks), config.include, config.exclude), config)
    check_measurable(model)
    if model.config.is_encoder_decoder:
        raise ValueError(
            f"{type(model).__name__} is an encoder-decoder, for which plans cannot be searched: choose an allocation."
        )
    if shares_parameters(model) or not BlockSource(find_blocks(model, config.blocks)).is_resident:
        raise ValueError(
            "A search for a plan prunes the model again and again, so all of it must be in the memory of one process: "
            "load it whole, or choose an allocation."
        )


def _check_start(plan: SparsityPlan, weights: Weights, config: MWandaConfig) -> None:
    """Checks that a search can begin with a plan, of which it keeps the number of pruned weights.

    Raises:
        ValueError: If it cannot.
    """
    if not is_close(plan.target, config.target_sparsity):
        raise ValueError(
            f"The plan was made for a sparsity of {plan.target:g}, which a search keeps, and not for "
            f"sparsity={config.target_sparsity:g}: give sparsity={plan.target:g}, or another plan."
        )
    check_plan(plan, weights, config)
    units = find_units(weights)
    for unit in units:
        if len({plan.of(weight) for weight in unit.weights}) > 1:
            raise ValueError(
                f"The plan gives {unit.weights[0].name!r} and the same matrix of other experts different sparsities, "
                "but a search gives them one: give them one in the plan too, or leave the plan out."
            )
    total = sum(unit.numel for unit in units)
    planned = sum(unit.numel * sparsity for unit, sparsity in zip(units, start_of(plan, units), strict=True)) / total
    if abs(planned - config.target_sparsity) > _ROUNDING:
        raise ValueError(
            f"The plan was edited and prunes {planned:.4g} of the weights, which a search keeps, and not "
            f"sparsity={config.target_sparsity:g}: edit others of its sparsities too, or leave the plan out."
        )
